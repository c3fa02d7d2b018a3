"""The state of a run, in state.json: read by everything that lists or supervises runs."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, Literal

from ..files import write_text
from ..formats import FORMAT

FILE, LOCK = "state.json", ".lock"
RunState = Literal["running", "finished", "preempted", "failed", "killed"]


def write_state(folder: Path, state: RunState, steps: int | None, why: str = "") -> None:
    """Write state.json. steps: length of the training, None if nothing is trained. why: the error of a failed run, in one line."""
    said = {
        "format": FORMAT,
        "state": state,
        "steps": steps,
        "why": why,
        "host": platform.node(),
        "pid": os.getpid(),
        "at": time.time(),
    }
    write_text(folder / FILE, json.dumps(said, indent=1))


def read_state(folder: Path) -> dict[str, Any]:
    """state.json; only `state` if it is missing or unreadable. State `running` without a lock is reported as `killed`."""
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = None
    if not isinstance(said, dict) or "state" not in said:
        said = {"state": "running"}
    return said | {"state": "killed"} if said["state"] == "running" and not _locked(folder) else said


def _locked(folder: Path) -> bool:
    """Whether a process holds the run's lock."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
