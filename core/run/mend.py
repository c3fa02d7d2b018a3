"""What a kill or a disk damaged in the folder of a begun run: found, named, and put aside, so that the run goes on and nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

from ..manifest import MANIFEST
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
