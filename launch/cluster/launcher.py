"""`rootstock launch`: a verb on several processes, started by torchrun's elastic agent. `rootstock doctor --distributed` uses it too.

This file adds what the agent lacks: signals reach the workers, which save together and end; no worker survives the launcher; and the
exit code says how the launch ended.
"""

import contextlib
import ctypes
import json
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.environment import usable_cores
from ...core.errors import ProcessesFailed, UserError
from ...core.interrupt import REQUESTS
from ...core.launchlog import LOG_VARIABLE
from ...core.loudness import OPTIONS, loudness
from ...core.run.folder import make_folder, run_folder
from ..exits import STOPPED
from .placement import Placement, await_first_node, check_devices, rendezvous_failed
from .stopped import stopped_workers_end

LAUNCHER = "ROOTSTOCK_LAUNCHER"
PR_SET_PDEATHSIG = 1  # of prctl(2)
LOST = 131  # exit code when the first node was lost while the processes here were fine
JOIN_TIMEOUT = 600  # seconds that nodes wait for each other
# Seconds until workers are killed after a second Ctrl-C: a process inside a collective cannot handle signals.
GRACE = 3.0


def launch_verb(verb: str, config: str, overrides: Sequence[str], where: Placement) -> int:
    """Run the verb on all processes. Returns the exit code: 0, 2, 130 (saved and stopped), 131 (the first node is lost), 132 (a process is
    lost or stuck) or 1. Raises UserError.
    """
    options = resolve_launch(verb, config, overrides)["run"]
    check_devices(where, options)
    patience = options["timeout"] if where.nproc * where.nodes > 1 else None
    aloud = [OPTIONS[loudness()]] if loudness() in OPTIONS else []
    return start_processes(
        [verb, config, *overrides, *aloud], where, run_folder(options["dir"]) / "logs", patience=patience
    )


def start_processes(
    arguments: Sequence[str],
    where: Placement,
    logs: Path,
    answers: Collection[int] = (),
    timeout: int = JOIN_TIMEOUT,
    patience: float | None = None,
) -> int:
    """Run `rootstock` with these arguments on all processes. Returns the exit code, as `launch_verb` does, or one of `answers`.

    logs: folder for the output of the processes. answers: exit codes of processes that are results and no failures.
    timeout: seconds that nodes wait for each other. patience: seconds after which a process that was stopped is ended, None for never.
    Raises RendezvousFailed.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    # It logs each process that ends; `_ended` or the processes themselves already say how the launch ended.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    command = ["-m", "rootstock", *arguments]
    with (
        _environment({LAUNCHER: str(os.getpid()), LOG_VARIABLE: str(logs.absolute() / "rank-0.log")}, where.nproc),
        _forward_signals() as requests,
        stopped_workers_end(patience, _workers),
    ):
        earlier = _attempts(logs)
        try:
            await_first_node(where, timeout)
            elastic_launch(_settings(where, logs, timeout), sys.executable)(*command)
        except ChildFailedError as error:
            return STOPPED if _without_saving(requests) else _ended(error, logs, answers)
        except (RendezvousError, DistError) as error:
            reason = (str(error.__cause__ or error) or "some did not join in time").splitlines()[0]
            if _attempts(logs) == earlier:  # no process was started
                raise rendezvous_failed(where, reason) from error
            if requests:
                return STOPPED
            print(
                f"error: lost the node at {where.rendezvous} ({reason}); see the output of that node", file=sys.stderr
            )
            return LOST
    return 0


def _attempts(logs: Path) -> set[Path]:
    """The log folders that torch's agent has made so far, one for each start."""
    return set(logs.glob("**/attempt_*"))


def resolve_launch(verb: str, config: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved config of a verb that can be launched. Raises UserError."""
    from ..verbs import VERBS, resolve

    if verb not in VERBS:
        raise UserError(f"launch {verb}: expected one of {', '.join(VERBS)}")
    return resolve(verb, config, overrides)


def _settings(where: Placement, logs: Path, timeout: int):
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    make_folder(logs)
    # The first process of a node writes to the console, the others to files.
    redirects = dict.fromkeys(range(1, where.nproc), Std.ALL)
    return LaunchConfig(
        min_nodes=where.nodes,
        max_nodes=where.nodes,
        nproc_per_node=where.nproc,
        # The agent names the folders in it by the rank on the node, so each node needs its own.
        logs_specs=DefaultLogsSpecs(str(logs if where.nodes == 1 else logs / platform.node()), redirects=redirects),
        run_id=where.job,
        rdzv_backend="c10d",
        rdzv_endpoint=where.rendezvous or "localhost:0",
        rdzv_configs={"join_timeout": timeout, "read_timeout": min(60, timeout)},
        max_restarts=0,
        signals_to_handle="SIGUSR2",  # the agent would kill the workers at once; we forward the other signals
    )


@contextlib.contextmanager
def _environment(values: dict[str, str], nproc: int) -> Iterator[None]:
    """Set environment variables that the workers inherit.

    OMP_NUM_THREADS, unless it is set: 1 for several workers, as in torchrun, or all cores for one.
    """
    added = {"OMP_NUM_THREADS": "1" if nproc > 1 else str(usable_cores())} | values
    before = {name: os.environ.get(name) for name in added}
    os.environ.update({name: value for name, value in added.items() if name in values or before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _forward_signals() -> Iterator[list[int]]:
    """Forward each request to stop to all workers, and yield the list of requests; without workers, a request ends the launch.

    After a second Ctrl-C, workers still alive after GRACE seconds are killed.
    """
    requests: list[int] = []
    kill_timer = threading.Timer(GRACE, _kill)

    def forward(number: int, _: object) -> None:
        if not _send(number):
            raise KeyboardInterrupt
        requests.append(number)
        if _without_saving(requests) and not kill_timer.is_alive():
            with contextlib.suppress(RuntimeError):  # it was started before
                kill_timer.start()

    before = {number: signal.signal(number, forward) for number in REQUESTS}
    try:
        yield requests
    finally:
        kill_timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _without_saving(requests: Sequence[int]) -> bool:
    """Whether to end without saving: Ctrl-C after another request."""
    return signal.SIGINT in requests[1:]


def _kill() -> None:
    if _send(signal.SIGKILL):
        print(
            f"killed the processes that still ran {GRACE:g} s after the second Ctrl-C; the same command resumes",
            file=sys.stderr,
        )


def _send(number: int) -> bool:
    """Send a signal to every worker. Returns whether there is any."""
    found = _workers()
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return bool(found)


def _workers() -> list[int]:
    import psutil

    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "rootstock" in child.cmdline():
                found.append(child.pid)
    return found


def _ended(error, logs: Path, answers: Collection[int]) -> int:
    """The exit code when a worker has failed; prints what went wrong in the one that failed first."""
    rank, failure = _first(error.failures)
    code, message = failure.exitcode, failure.message
    message = message["message"] if isinstance(message, dict) else message  # written by launch/exits.py, or by torch
    if code in answers:
        return code
    if code == STOPPED or -code in REQUESTS:
        return STOPPED
    if code == -signal.SIGUSR2:  # ended by other workers, which found that it was lost (core/heartbeat.py)
        if rank == 0:
            print(_judgement(logs), file=sys.stderr)
        return ProcessesFailed.LOST
    if code in (2, ProcessesFailed.LOST):
        if rank != 0:  # rank 0 has printed its own message
            print(message, file=sys.stderr)
        return code
    if rank != 0 and code > 0:
        print(message, file=sys.stderr)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    print(f"error: rank {rank} (process {failure.pid}) {how} before any other; the logs are in {logs}", file=sys.stderr)
    return 1


def _judgement(logs: Path) -> str:
    """What the worker that ended another one has left in its file for torch's agent; rank 0 has printed its own."""
    found = sorted(logs.glob("**/error.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(path.read_text(encoding="utf-8"))["message"]["message"])
    return ""


def _first(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """(rank, failure) of the worker that failed first. failures: by rank, in the order in which they were noticed.

    Times are whole seconds. Within one second, a killed worker is taken for the cause of the others; SIGTERM comes from the agent, and
    SIGUSR2 from a worker that ends with LOST.
    """
    earliest = min(failure.timestamp for failure in failures.values())
    near = [item for item in failures.items() if item[1].timestamp <= earliest + 1]
    killed = [
        item for item in near if item[1].exitcode < 0 and -item[1].exitcode not in (signal.SIGTERM, signal.SIGUSR2)
    ]
    return (killed or near)[0]


def follow_launcher() -> None:
    """In a worker: stop as on request when the launcher dies, even by SIGKILL. On Linux only."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and os.getppid() == int(launcher):
        stop_with_parent(int(launcher))


def stop_with_parent(parent: int) -> None:
    """Let the kernel send this process SIGTERM when its parent ends, at once if it already has. On Linux only."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
