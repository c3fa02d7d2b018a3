"""Loader processes: how many there can be, how each of them begins, and what is said when one is lost."""

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
    """A loader process has ended by itself, or the system has ended it."""


def at_most_cores(workers: int) -> int:
    """`workers`, but no more than this process's part of the cores: beyond that they only wait for each other."""
    # torchrun and `accelerate launch` say how many processes share this machine; each of them starts its own workers.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(workers, max(1, usable_cores() // processes))


def init_worker(_: int) -> None:
    """The `worker_init_fn` of every loader."""
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole group, and SLURM's signals every process of a job; the main process decides when to stop, and ends us.
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)


def kill_workers(workers: Sequence[BaseProcess]) -> None:
    """End at once those that still live."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()


@contextmanager
def death_waits() -> Iterator[None]:
    """Within it DataLoader cannot take over SIGCHLD: its handler raises wherever the main process happens to be.

    A lost worker is found all the same, where its part of a batch is waited for, within five seconds.
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
    """What to say if one of them is no more."""
    codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
    if not codes:
        return None
    killed = next((-code for code in codes if code < 0), 0)
    how = f"was killed by {signal.Signals(killed).name}" if killed else "ended by itself"
    why = ", which is what happens where memory runs out" if killed == signal.SIGKILL else ""
    return WorkerLost(
        f"a loader process {how}{why}; run with fewer run.workers or more memory, or find out what ended it "
        "(the system's log may tell)"
    )
