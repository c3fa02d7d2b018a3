"""The state of a run, in state.json: read by everything that lists or supervises runs."""

from __future__ import annotations

import fcntl
import os
import platform
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from ..formats import FORMAT
from ..manifest import DamagedFile, read_record, write_record

FILE, LOCK = "state.json", ".lock"
RunState = Literal["running", "finished", "preempted", "failed", "killed"]
_locks: weakref.WeakSet[TextIO] = weakref.WeakSet()


def write_state(
    folder: Path,
    state: RunState,
    steps: int | None,
    why: str = "",
    rows: Mapping[str, Any] | None = None,
    energy: Mapping[str, Any] | None = None,
) -> None:
    """Write state.json. steps: length of the training, None if nothing is trained. why: the error of a failed run, in one line.

    rows: the digest of metrics.jsonl at the last checkpoint. energy: what the run has spent by then.
    """
    said = {
        "format": FORMAT,
        "state": state,
        "steps": steps,
        "why": why,
        "host": platform.node(),
        "pid": os.getpid(),
        "at": time.time(),
        **({"rows": rows} if rows else {}),
        **({"energy": energy} if energy else {}),
    }
    write_record(folder / FILE, said)


def read_state(folder: Path) -> dict[str, Any]:
    """state.json; only `state` and `why` if it is missing or damaged. State `running` without a lock is reported as `killed`."""
    try:
        said = read_record(folder / FILE)
        if said.get("state") not in get_args(RunState):
            raise DamagedFile(f"{folder / FILE} is damaged (it names no state)")
        if not isinstance(said.get("steps"), int | None):
            raise DamagedFile(f"{folder / FILE} is damaged (steps is no whole number)")
    except FileNotFoundError:
        said = {"state": "running"}
    except DamagedFile as error:
        said = {"state": "running", "why": str(error)}
    return said | {"state": "killed"} if said["state"] == "running" and not is_locked(folder) else said


def check_state(folder: Path, complain: Callable[[str], None]) -> None:
    """complain: gets a sentence if state.json is missing or damaged."""
    if not os.path.lexists(folder / FILE):
        complain(f"{folder / FILE} is missing")
    elif str(folder / FILE) in (why := read_state(folder).get("why", "")):
        complain(why)


def take_lock(folder: Path) -> TextIO:
    """The run's lock, held until it is closed. Raises BlockingIOError if a process holds it, OSError."""
    lock = open(folder / LOCK, "w")  # noqa: SIM115 - held until it is closed
    _locks.add(lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


def _leave_locks_to_parent() -> None:
    # A forked loader worker outlives a killed run by seconds; with our descriptor it would hold the lock that long.
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the run's lock."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
