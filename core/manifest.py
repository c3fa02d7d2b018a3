"""Digests of what we write, checked where it is read: MANIFEST.json of a folder, and JSON files that carry their own digest.

    {"sha256": {NAME: DIGEST, ...}, "own": DIGEST}     a manifest; NAME is relative to its folder
    {..., "own": DIGEST}                               a record, such as run.json

`own` is the digest of the rest, so that a flipped bit in a manifest does not make an intact file look damaged. Files of earlier versions
have neither, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .documents import Unreadable, read_json
from .errors import UserError
from .files import sha256, write_text
from .launchlog import warn

MANIFEST, OWN = "MANIFEST.json", "own"


class DamagedFile(Exception):
    """A file is not what was written; the message names it and says why."""


def own_digest(content: Mapping[str, Any]) -> str:
    """The digest of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, content: Mapping[str, Any], shared: bool = False) -> None:
    """Write a JSON object with its own digest. shared: as of `write_text`."""
    plain = json.loads(json.dumps(content))  # as a reader sees it: tuples are lists, keys are texts
    write_text(path, json.dumps({**plain, OWN: own_digest(plain)}, indent=1) + "\n", shared=shared)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object as it stands in the file. Raises FileNotFoundError, and DamagedFile if it is no readable JSON object."""
    if not os.path.lexists(path):
        raise FileNotFoundError(str(path))
    try:
        content = read_json(path)
    except Unreadable as error:
        raise DamagedFile(f"{path} is damaged ({error})") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} is damaged (it holds no JSON object)")
    return content


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object without its digest, which is checked if it has one. Raises FileNotFoundError and DamagedFile."""
    content = read_object(path)
    if OWN in content:
        if content.pop(OWN) != own_digest(content):
            raise DamagedFile(f"{path} is damaged (its content differs from its digest)")
    elif content:
        # The digest comes last. If that is the rest's digest under another name, the file is not of a version that wrote none.
        *rest, (_, last) = content.items()
        if last == own_digest(dict(rest)):
            raise DamagedFile(f"{path} is damaged (its digest has another name)")
    return content


def write_manifest(folder: Path, names: Iterable[str], texts: Mapping[str, str] = {}, shared: bool = False) -> None:
    """Write folder/MANIFEST.json with the digests of the files `names`, and of `texts`: files by name that are written after it."""
    digests = {name: sha256(folder / name) for name in names}
    digests |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    write_record(folder / MANIFEST, {"sha256": digests}, shared=shared)


def read_manifest(folder: Path) -> dict[str, str] | None:
    """The digests by name; None if the folder has no manifest. Raises DamagedFile."""
    try:
        digests = read_record(folder / MANIFEST)["sha256"]
        if not isinstance(digests, dict):
            raise TypeError
    except FileNotFoundError:
        return None
    except (KeyError, TypeError):
        raise DamagedFile(f"{folder / MANIFEST} is damaged (it holds no digests)") from None
    return digests


def check_file(folder: Path, name: str, digests: Mapping[str, str]) -> None:
    """Raises DamagedFile if a file of the folder is missing or differs from its digest; a name without a digest is an error too."""
    path = folder / name
    if name not in digests:
        raise DamagedFile(f"{path} is not listed in {folder / MANIFEST}")
    try:
        actual = sha256(path)
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror})") from error
    if actual != digests[name]:
        raise DamagedFile(f"{path} is damaged (its sha256 differs from that in {MANIFEST})")


def guard(folder: Path, names: Iterable[str], key: str) -> None:
    """Check files of an export before they are read. key: as the message names it.

    Raises UserError, naming the file. An export of an earlier version has no manifest: that is said once.
    """
    try:
        _check_owner(folder)
        digests = read_manifest(folder)
        if digests is None:
            warn(
                f"WARNING: {folder} has no {MANIFEST}, so damage in it would not be noticed (earlier versions wrote none)"
            )
            return
        for name in names:
            check_file(folder, name, digests)
    except DamagedFile as error:
        again = exported_anew(folder.parent) or "export it again by a run in another run.dir"
        raise UserError(f"{key}: {error}; restore it from a copy, or {again}") from error


def guard_alone(path: Path, key: str) -> None:
    """`guard` for one file of an export that is given instead of its run; nothing where the folder's manifest doesn't list the file.

    Warns of what is left behind. Raises UserError.
    """
    try:
        if path.name not in (read_manifest(path.parent) or {}):
            return
    except DamagedFile:
        if not (path.parent / "backbone.json").exists():  # somebody else's MANIFEST.json
            return
    guard(path.parent, (path.name,), key)
    run = path.parent.parent
    warn(
        f"WARNING: {key}: {path} is a file of a run; {key}={run} would also take what its network has seen, and its mean and std"
    )


def exported_anew(run: Path) -> str:
    """How a finished run exports its network once more; "" if the folder is none that could."""
    if not (run / "result.json").exists() or not (run / "checkpoints").is_dir():
        return ""
    return f"delete {run / 'result.json'} and give that run's command again, which exports it anew"


def lost_exports(run: Path) -> list[str]:
    """What is missing or damaged of the exports of a finished run: folders, files of them, or their manifests.

    A damaged manifest of the run itself is another's matter. Other files are checked where they are read.
    """
    try:
        digests = read_manifest(run) or {}
    except DamagedFile:
        return []
    exports = [name for name in digests if name.endswith(f"/{MANIFEST}")]
    return [lost for name in exports for lost in _lost(run, name, digests)]


def _lost(run: Path, manifest: str, digests: Mapping[str, str]) -> list[str]:
    folder = (run / manifest).parent
    if not folder.is_dir():
        return [f"{folder.name}/"]
    try:
        check_file(run, manifest, digests)
        listed = read_manifest(folder) or {}
    except DamagedFile:
        return [manifest]
    return [f"{folder.name}/{name}" for name in listed if not (folder / name).is_file()]


def _check_owner(folder: Path) -> None:
    """An export inside a finished run is the one that the run wrote. Raises DamagedFile."""
    name = f"{folder.name}/{MANIFEST}"
    if not (folder.parent / "result.json").exists():  # the export may be newer than the manifest of an unfinished run
        return
    try:
        digests = read_manifest(folder.parent) or {}
    except DamagedFile:
        return
    if name in digests:
        check_file(folder.parent, name, digests)
