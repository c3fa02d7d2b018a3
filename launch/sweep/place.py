"""The folder of a sweep: its identifier in the storage, and the locks of its trials."""

from __future__ import annotations

import fcntl
import hashlib
import re
import uuid
from pathlib import Path
from typing import IO

from ...core.documents import Unreadable, read_yaml
from ...core.errors import UserError
from ...core.files import read_regular, write_text
from ...core.launchlog import warn
from ...core.run.folder import keep_damaged

_PLACE, _OWNER = ".place", ".owner"


def lock_trial(folder: Path) -> IO[str] | None:
    """Take the lock of a trial; None if another process holds it."""
    folder.mkdir(exist_ok=True)
    file = open(folder / _OWNER, "w")  # noqa: SIM115 - the claim holds it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def sweep_place(folder: Path) -> str:
    """The identifier of the folder in the storage, the same wherever the disk is mounted."""
    path = folder / _PLACE
    try:
        text = read_regular(path).decode("ascii", "replace").strip()
        if text == text[:32] + _checked(text[:32]) or re.fullmatch(
            "[0-9a-f]{32}", text
        ):  # earlier versions wrote no checksum
            return text[:32]
        trouble = f"{path} is damaged"
        keep_damaged(path)
    except FileNotFoundError:
        trouble = f"{path} is missing" if (folder / "config.yaml").exists() else ""
    if trouble:
        warn(f"WARNING: {trouble}; it is made anew, so unfinished trials here count as those of another machine")
    name = uuid.uuid4().hex
    write_text(path, name + _checked(name))
    return name


def _checked(name: str) -> str:
    return "-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def check_sweep_folder(folder: Path) -> None:
    """Raises UserError if something other than a sweep is in the folder."""
    path = folder / "config.yaml"
    if not path.exists():
        return
    try:
        before = read_yaml(path)
    except Unreadable:
        before = None
    if not isinstance(before, dict) or "search" not in before:
        raise UserError(f"run.dir: {folder} holds something other than a sweep; choose another run.dir")
