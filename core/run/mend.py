"""What a kill or a disk damaged in the folder of a begun run: found, named, and put aside, so that the run goes on and nothing is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import expanded
from ..images.decode import is_picture
from ..manifest import MANIFEST
from ..ownfiles import OLD_SHEET
from ..printable import printable
from .folder import ABOUT, RESULT, check_config, keep_damaged, read_about
from .state import FILE, check_state

FOLDERS = ("checkpoints", "backbone", "classifier", "pictures")


def file_for_folder(run: Path) -> str:
    """The first file that stands where a folder of a run belongs; "" if there is none."""
    paths = (run / name for name in FOLDERS)
    return next((str(path) for path in paths if os.path.lexists(path) and not path.is_dir()), "")


def find_damage(run: Path) -> list[str]:
    """A sentence for each file of a begun run that is missing or damaged, besides those that are checked where they are read."""
    found: list[str] = []
    check_config(run, found.append)
    check_state(run, found.append)
    read_about(run, found.append)
    if not os.path.lexists(run / ABOUT):
        found.append(f"{run / ABOUT} is missing, so the data is not compared with what the run began with")
    return found


def put_aside(run: Path, complaints: list[str]) -> None:
    """Give the files that the complaints name the name NAME.damaged."""
    for path in (run / name for name in (RESULT, ABOUT, MANIFEST, FILE)):
        if os.path.lexists(path) and any(str(path) in complaint for complaint in complaints):
            keep_damaged(path)


def not_for_a_run(run: Path, config: Mapping[str, Any]) -> str:
    """Why no run should begin in a folder, told before anything is written there; "" if one may: it is data, or holds pictures."""
    for name, uri in folders_read(config.get("data")):
        if os.path.realpath(run) == os.path.realpath(expanded(uri)):
            return f"{run} is itself read as {name}; choose a folder of its own, for example {run / 'runs' / 'first'}"
    try:
        names = os.listdir(run)
    except OSError:  # not there, or no folder, which is said where it is made
        return ""
    if pictures := sorted(name for name in names if is_picture(name) and name != OLD_SHEET):
        return f"{run} holds {len(pictures)} pictures ({printable(pictures[0])}); choose a folder of its own"
    return ""


def folders_read(value: Any, name: str = "data") -> Iterator[tuple[str, str]]:
    """(key, path) of each folder: in the section `data` of a config."""
    if isinstance(value, str) and value.startswith("folder:"):
        yield name, re.split("[?#]", value.removeprefix("folder:"))[0]
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from folders_read(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from folders_read(inner, name)
