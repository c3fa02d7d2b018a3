"""Loader processes: how many there can be, and how each of them begins."""

from __future__ import annotations

import os
import signal

import torch


def at_most_cores(workers: int) -> int:
    """`workers`, but no more than the cores that this process may use: beyond that they only wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers, cores)


def begin(_: int) -> None:
    """The `worker_init_fn` of every loader."""
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole group; the main process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
