"""What became of a run: state.json, for whoever looks after many of them."""

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
    """Write it. steps: of the whole training; None where nothing is trained. why: what a failed run failed of, in a line."""
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
    """What was written last; `state` alone where nothing legible was. A run that should be running, but holds no lock, was killed."""
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = None
    if not isinstance(said, dict) or "state" not in said:
        said = {"state": "running"}
    return said | {"state": "killed"} if said["state"] == "running" and not _locked(folder) else said


def _locked(folder: Path) -> bool:
    """Whether a process holds the run."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
