"""This process and others as the operating system sees them: where the main thread is, and whether a process still runs."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

OURS = Path(__file__).resolve().parents[1]
OWN_FOLDERS = ("core", "ssl", "finetune", "adapt", "launch", "tests")  # not .venv, which may lie there too
# Where the main thread waits for other processes: the innermost frame is in one of these files. In the last it may also compute.
COLLECTIVES = ("torch/distributed/distributed_c10d.py", "core/distributed.py")
BACKWARD = "torch/autograd/graph.py"


class Whereabouts(NamedTuple):
    """place: `file:line in function`. waits: whether other processes may be waited for there; collective: whether they surely are."""

    place: str
    waits: bool
    collective: bool


def whereabouts(ident: int) -> Whereabouts:
    """Where a thread is, by its identifier; the place is the innermost in our own files, with that in a foreign file which it called."""
    frame = sys._current_frames().get(ident)
    if frame is None:
        return Whereabouts("", False, False)
    file, at = frame.f_code.co_filename, frame
    while at is not None and not _own(at.f_code.co_filename):
        at = at.f_back
    shown = at or frame
    path = _own(shown.f_code.co_filename) or Path(shown.f_code.co_filename).name
    collective = file.endswith(COLLECTIVES)
    place = f"{path}:{shown.f_lineno} in {shown.f_code.co_name}"
    if shown is not frame and not collective and not file.endswith(BACKWARD):
        place += f", in {Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}"
    return Whereabouts(place, collective or file.endswith(BACKWARD), collective)


def _own(file: str) -> str:
    """The path of a file of ours below the package; "" for other files."""
    path = Path(file)
    inside = path.relative_to(OURS) if path.is_relative_to(OURS) else Path()
    return str(inside) if inside.parts and inside.parts[0] in OWN_FOLDERS else ""


def identity() -> dict[str, Any]:
    """Of this process, for `running` on the same machine: number, start and what the number belongs to (a container has its own)."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    host = platform.node()
    return {"host": host, "where": f"{host} {namespace}", **numbered(os.getpid())}


def numbered(pid: int) -> dict[str, Any]:
    """A process of this machine, for `running`: its number, and when it began. Raises psutil.NoSuchProcess if there is none."""
    return {"pid": pid, "born": _born(pid)}


def _born(pid: int) -> float:
    """When a process began: on Linux in ticks since the machine did, which no step of the clock changes (proc(5)); elsewhere in seconds."""
    if not sys.platform.startswith("linux"):
        return psutil.Process(pid).create_time()
    try:
        # The name stands in brackets and may hold spaces and brackets itself; what follows the last one are the fields from the third on.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        raise psutil.NoSuchProcess(pid) from None
    return float(fields[19])


def running(peer: Mapping[str, Any]) -> psutil.Process | None:
    """The process of this machine with that `identity`; None if it has ended, also where its number has another process now."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(peer["pid"])
        if _born(process.pid) == peer["born"] and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def condition(peer: Mapping[str, Any]) -> str:
    """What the kernel says of a process of this machine: "stopped", "disk-sleep", "sleeping", ...; "ended" if there is none."""
    process = running(peer)
    with contextlib.suppress(psutil.Error):
        if process is not None:
            return process.status()
    return "ended"


def end_processes(peers: Iterable[Mapping[str, Any]], patience: float = 2.0) -> None:
    """Let processes of this machine leave their stacks and end: SIGUSR2, also to one that is stopped; SIGKILL where that is not enough.

    patience: seconds until SIGKILL; 0 where somebody else sends it.
    """
    found = [(peer, process) for peer in peers if (process := running(peer)) is not None]
    for _, process in found:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGUSR2)
            process.send_signal(signal.SIGCONT)
    # Not psutil's wait: it would take the exit code of a child from who started it.
    until = time.monotonic() + patience
    while time.monotonic() < until and any(running(peer) for peer, _ in found):
        time.sleep(0.02)
    for peer, process in found if patience else ():
        with contextlib.suppress(psutil.Error):
            if running(peer):
                process.kill()
