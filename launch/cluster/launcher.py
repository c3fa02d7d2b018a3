"""`rootstock launch`: a verb on several processes, by torchrun's elastic agent; `rootstock doctor --distributed` starts its own so.

What the agent does not do is done here: signals reach the workers, who save together and end; nobody is left behind when the launcher
dies; and the exit code says how it ended.
"""

import contextlib
import ctypes
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
from ...core.errors import UserError
from ...core.interrupt import REQUESTS
from ...core.launchlog import LOG_VARIABLE
from ..exits import STOPPED
from .placement import Placement, await_first_node, check_devices, rendezvous_failed

LAUNCHER = "ROOTSTOCK_LAUNCHER"
PR_SET_PDEATHSIG = 1  # of prctl(2)
LOST = 131  # how a launch ends whose processes were well when the first node went
JOIN_TIMEOUT = 600  # seconds that nodes wait for each other
# Seconds that processes have after a second Ctrl-C: one that waits for another in a collective hears no signal.
GRACE = 3.0


def launch_verb(verb: str, config: str, overrides: Sequence[str], where: Placement) -> int:
    """Run the verb on all processes and return the exit code: 0, 2, 130 (saved and stopped), 131 (LOST) or 1. Raises UserError."""
    options = resolve_launch(verb, config, overrides)["run"]
    check_devices(where, options)
    return start_processes([verb, config, *overrides], where, Path(options["dir"]) / "logs")


def start_processes(
    arguments: Sequence[str], where: Placement, logs: Path, answers: Collection[int] = (), patience: int = JOIN_TIMEOUT
) -> int:
    """Run `rootstock` with these arguments on all processes and return the exit code, as `launch_verb` does, or one of `answers`.

    logs: the folder for what they print. answers: exit codes of processes that say something and are no failure. patience: seconds
    that nodes wait for each other. Raises Apart.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    # It tells of each process that ended or is told to end; how the launch ended is said once, by `_ended` or the processes.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    command = ["-m", "rootstock", *arguments]
    with (
        _environment({LAUNCHER: str(os.getpid()), LOG_VARIABLE: str(logs.absolute() / "rank-0.log")}, where.nproc),
        _forwarding() as asked,
    ):
        earlier = _attempts(logs)
        try:
            await_first_node(where, patience)
            elastic_launch(_settings(where, logs, patience), sys.executable)(*command)
        except ChildFailedError as error:
            return STOPPED if _at_once(asked) else _ended(error, logs, answers)
        except (RendezvousError, DistError) as error:
            reason = (str(error.__cause__ or error) or "some did not come in time").splitlines()[0]
            if _attempts(logs) == earlier:  # no process was started
                raise rendezvous_failed(where, reason) from error
            if asked:
                return STOPPED
            print(f"error: lost the node at {where.rendezvous} ({reason}); its own words say why", file=sys.stderr)
            return LOST
    return 0


def _attempts(logs: Path) -> set[Path]:
    """The folders in which torch's agent has begun the logs of processes."""
    return set(logs.glob("**/attempt_*"))


def resolve_launch(verb: str, config: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved config of a verb that can be launched. Raises UserError."""
    from ..verbs import VERBS, resolve

    if verb not in VERBS:
        raise UserError(f"launch {verb}: expected one of {', '.join(VERBS)}")
    return resolve(verb, config, overrides)


def _settings(where: Placement, logs: Path, patience: int):
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    try:
        logs.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"run.dir: {logs.parent} cannot hold the logs ({error}); choose another run.dir") from error
    # The first process of a node speaks to whoever watches, the others to files.
    quiet = dict.fromkeys(range(1, where.nproc), Std.ALL)
    return LaunchConfig(
        min_nodes=where.nodes,
        max_nodes=where.nodes,
        nproc_per_node=where.nproc,
        # Folders of theirs are named by the rank on the node.
        logs_specs=DefaultLogsSpecs(str(logs if where.nodes == 1 else logs / platform.node()), redirects=quiet),
        run_id=where.job,
        rdzv_backend="c10d",
        rdzv_endpoint=where.rendezvous or "localhost:0",
        rdzv_configs={"join_timeout": patience, "read_timeout": min(60, patience)},
        max_restarts=0,
        signals_to_handle="SIGUSR2",  # the agent would end the workers at once by others; those are forwarded
    )


@contextlib.contextmanager
def _environment(values: dict[str, str], nproc: int) -> Iterator[None]:
    """For the workers, who inherit it. Of several, each has one thread unless someone chose otherwise, as torchrun does; one has all."""
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
def _forwarding() -> Iterator[list[int]]:
    """Within it, a request to stop goes to every worker and into the list; without workers yet, it ends the launch. After a second
    Ctrl-C who has not left when GRACE is over is killed."""
    asked: list[int] = []
    impatience = threading.Timer(GRACE, _kill)

    def forward(number: int, _: object) -> None:
        if not _send(number):
            raise KeyboardInterrupt
        asked.append(number)
        if _at_once(asked) and not impatience.is_alive():
            with contextlib.suppress(RuntimeError):  # it has been
                impatience.start()

    before = {number: signal.signal(number, forward) for number in REQUESTS}
    try:
        yield asked
    finally:
        impatience.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _at_once(asked: Sequence[int]) -> bool:
    """Whether someone wants to leave without saving: Ctrl-C after another request."""
    return signal.SIGINT in asked[1:]


def _kill() -> None:
    if _send(signal.SIGKILL):
        print(f"killed what still ran {GRACE:g} s after the second Ctrl-C; the same command resumes", file=sys.stderr)


def _send(number: int) -> bool:
    """Send a signal to every worker; False without any."""
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
    """The exit code of workers who did not all finish; what nobody foresaw is said first of the one who failed first."""
    rank, failure = _first(error.failures)
    code, said = failure.exitcode, failure.message
    said = said["message"] if isinstance(said, dict) else said  # as launch/exits.py leaves it, and as torch makes it up
    if code in answers:
        return code
    if code == STOPPED or -code in REQUESTS:
        return STOPPED
    if code == 2:
        if rank != 0:  # the first has said its sentence itself
            print(said, file=sys.stderr)
        return 2
    if rank != 0 and code > 0:
        print(said, file=sys.stderr)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    print(f"error: rank {rank} (process {failure.pid}) {how} before any other; the logs are in {logs}", file=sys.stderr)
    return 1


def _first(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """Who failed first, of those found to have failed, by rank, in the order in which they were found.

    Their times are whole seconds. Who was killed has brought down those that failed within one; SIGTERM is the agent's own.
    """
    earliest = min(failure.timestamp for failure in failures.values())
    near = [item for item in failures.items() if item[1].timestamp <= earliest + 1]
    killed = [item for item in near if item[1].exitcode < 0 and item[1].exitcode != -signal.SIGTERM]
    return (killed or near)[0]


def follow_launcher() -> None:
    """In a worker: should the launcher die, even of SIGKILL, stop as if asked to. Linux; elsewhere nothing."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and os.getppid() == int(launcher):
        stop_with_parent(int(launcher))


def stop_with_parent(parent: int) -> None:
    """Have the system send us SIGTERM when our parent ends, however it does; at once if it has. Linux; elsewhere nothing."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
