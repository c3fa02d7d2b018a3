"""The folder that `run.dir` names: found, made, and read back; every error of the file system becomes one sentence here."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..files import read_regular, write_text
from ..manifest import MANIFEST, DamagedFile, check_file, read_manifest, read_record, write_manifest
from ..ownfiles import RUN_FOLDERS, is_run
from ..printable import printable
from .state import FILE, LOCK

WEIGHT_FOLDERS = ("checkpoints", "candidates", "backbone", "classifier")
CONFIG, RESULT, ABOUT = "config.yaml", "result.json", "run.json"
SEAL = "# sha256 of the lines below: "
ELSEWHERE = "choose another run.dir"
LETTERS = 80  # letters of a folder's name in a message


def run_folder(text: str) -> Path:
    """The folder that `run.dir` says; ~ is the home folder. Raises UserError."""
    if not text.strip() or "\0" in text:
        raise UserError(f"run.dir: {text!r} names no folder; {ELSEWHERE}")
    try:
        folder = Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"run.dir: {text} has no home folder here; write the whole path") from None
    if os.path.realpath(folder) in ("/", os.path.realpath(os.path.expanduser("~"))):
        inside = printable(str(folder / "runs" / "first"))
        raise UserError(
            f"run.dir: {printable(text)} is no folder for a run alone; name one inside it, such as {inside}"
        )
    return folder


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.dir: {folder_trouble(folder, error)}; {ELSEWHERE}") from None


def others_file(folder: Path) -> str:
    """The first file or folder in it that a run would replace, if no run has had the folder yet; "" if there is none."""
    names = set(os.listdir(folder))
    if LOCK in names or is_run(names):
        return ""
    if CONFIG in names and not _is_sealed(folder / CONFIG):
        return str(folder / CONFIG)
    mine = () if CONFIG in names else (ABOUT, FILE, MANIFEST, *RUN_FOLDERS)
    return next((str(folder / name) for name in mine if name in names), "")


def _is_sealed(path: Path) -> bool:
    try:
        return read_regular(path).startswith(SEAL.encode())
    except OSError:
        return False


def folder_trouble(folder: Path, error: OSError) -> str:
    """Why the folder cannot be used, in words: the part of its path that is in the way, if there is one."""
    for part in [*reversed(folder.parents), folder]:
        try:
            mode = part.stat().st_mode
        except OSError as found:
            if os.path.islink(part) and found.errno == errno.ELOOP:
                return f"{_short(part)} is a link that leads back to itself"
            if os.path.islink(part) and found.errno == errno.ENOENT:
                return f"{_short(part)} is a link to {os.readlink(part)}, which does not exist"
            break
        if not stat.S_ISDIR(mode):
            return f"{_short(part)} is a file"
    if isinstance(error, PermissionError):
        return f"{_short(folder)} cannot be written"
    return f"{_short(folder)} cannot be written ({error.strerror or error})"


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 2 * LETTERS else f"{text[:LETTERS]}...{text[-20:]}"


def keep_damaged(path: Path) -> Path:
    """Give a damaged file, or a folder in its place, the name NAME.damaged, so that nothing is lost; returns the new path."""
    count, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        count += 1
        aside = path.with_name(f"{path.name}.damaged-{count}")
    return path.rename(aside)


def read_result(folder: Path, complain: Callable[[str], None]) -> dict[str, Any] | None:
    """result.json of a run, a pipeline or a sweep, checked by its manifest; None if there is none, or if it is damaged.

    complain: gets a sentence that names each file that is damaged, or missing although the manifest lists it.
    """
    digests = None
    try:
        digests = read_manifest(folder)
    except DamagedFile as error:
        complain(f"{error}, so {RESULT} is read unchecked")
    try:
        result = read_record(folder / RESULT)  # that of a pipeline or a sweep has its own digest
        if digests is not None:
            check_file(folder, RESULT, digests)
    except FileNotFoundError:
        if digests is not None and RESULT in digests:
            complain(f"{folder / RESULT} is missing, though {MANIFEST} lists it")
        return None
    except DamagedFile as error:
        complain(str(error))
        return None
    if digests is None and _manifest_expected(folder):
        complain(f"{folder / MANIFEST} is missing, so {RESULT} is read unchecked")
    return result


def write_config(folder: Path, config: Mapping[str, Any], shared: bool = False) -> None:
    """Write config.yaml; its first line is a comment with the digest of the lines below, so that it stays a config."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / CONFIG, f"{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}", shared=shared)


def check_config(folder: Path, complain: Callable[[str], None]) -> bool:
    """Whether config.yaml has a digest. complain: gets a sentence if the file is missing, cannot be read, or differs from its digest."""
    path = folder / CONFIG
    try:
        first, _, text = read_regular(path).decode("utf-8").partition("\n")
    except FileNotFoundError:
        complain(f"{path} is missing")
        return False
    except (OSError, UnicodeDecodeError) as error:
        complain(f"{path} is damaged ({getattr(error, 'strerror', None) or 'it is no text in UTF-8'})")
        return False
    sealed = first.startswith(SEAL)
    if sealed and hashlib.sha256(text.encode()).hexdigest() != first.removeprefix(SEAL):
        complain(f"{path} was changed since it was written (it differs from the digest in its first line)")
    return sealed


def write_result(folder: Path, result: Mapping[str, Any], guarded: Iterable[str], keep: str = "all") -> None:
    """Write MANIFEST.json, then result.json, atomically and last. guarded: other files of the run, whose digests are listed too.

    keep: with "results", the run's weights are then removed, and not listed.
    """
    text = json.dumps(result, indent=1) + "\n"
    listed = [name for name in guarded if keep == "all" or name.partition("/")[0] not in WEIGHT_FOLDERS]
    write_manifest(folder, listed, {RESULT: text})
    write_text(folder / RESULT, text)
    for name in WEIGHT_FOLDERS if keep == "results" else ():  # a kill in between leaves them, unlisted
        shutil.rmtree(folder / name, ignore_errors=True)


def read_about(folder: Path, complain: Callable[[str], None]) -> dict[str, Any]:
    """run.json; empty if there is none, or if it is damaged. complain: as of `read_result`."""
    try:
        return read_record(folder / ABOUT)
    except FileNotFoundError:
        return {}
    except DamagedFile as error:
        complain(str(error))
        return {}


def _manifest_expected(folder: Path) -> bool:
    """Whether the version that wrote run.json also wrote a manifest beside each result."""
    return bool(read_about(folder, lambda _: None).get("manifest"))
