"""Loader processes: their number, how each one starts, and the error when one is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import torch

from ..environment import usable_cores
from ..errors import UserError
from ..interrupt import REQUESTS


class WorkerLost(UserError):
    """A loader process has exited or was killed."""


def at_most_cores(workers: int) -> int:
    """`workers`, but at most this process's share of the cores; more would only wait for each other."""
    # torchrun and `accelerate launch` set how many processes share this machine; each starts its own workers.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(workers, max(1, usable_cores() // processes))


def init_worker(_: int) -> None:
    """The `worker_init_fn` of every DataLoader here."""
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group, and SLURM signals every process of a job. The main process decides when to stop and ends
    # the workers.
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)


def kill_workers(workers: Sequence[BaseProcess]) -> None:
    """Kill the workers that are still alive."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()


@contextmanager
def death_waits() -> Iterator[None]:
    """Keep DataLoader from installing its SIGCHLD handler, which raises at an arbitrary place of the main process.

    A lost worker is still noticed within five seconds, where the main process waits for its part of a batch.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def worker_lost(workers: Sequence[BaseProcess]) -> WorkerLost | None:
    """The error to raise if one of the workers has ended, else None."""
    codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
    if not codes:
        return None
    killed = next((-code for code in codes if code < 0), 0)
    how = f"was killed by {signal.Signals(killed).name}" if killed else "ended by itself"
    why = ", which happens when memory runs out" if killed == signal.SIGKILL else ""
    return WorkerLost(
        f"a loader process {how}{why}; run with fewer run.workers or more memory, or look in the system's log for "
        "the cause"
    )
