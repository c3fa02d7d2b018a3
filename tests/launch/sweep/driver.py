"""A worker of a sweep, as a program of tests/forks.py: driver.py JOB.

A job is {"argv", "log", "fault"}; a fault is {"at", "signal", "to"}: a trial that is about to begin the step after `at` completed ones
sends the signal to itself ("trial") or to the worker that began it ("worker"), and continues once the request to stop has arrived.
"""

import json
import os
import sys
import time
from typing import Any

import torch

from rootstock.core.train import loop
from rootstock.launch.cli import main

PATIENCE = 60.0


def inject(fault: dict[str, Any]) -> None:
    straight = loop.Loop.step

    def stepping(
        self: loop.Loop, wrapped: Any, micro: Any, prepare: Any, step: int, asked: list[int]
    ) -> dict[str, Any]:
        if step == fault["at"]:
            os.kill(os.getppid() if fault["to"] == "worker" else os.getpid(), fault["signal"])
            deadline = time.monotonic() + PATIENCE
            while not asked and time.monotonic() < deadline:
                os.sched_yield()
        return straight(self, wrapped, micro, prepare, step, asked)

    loop.Loop.step = stepping


def forbid_gpus_to_workers() -> None:
    """A worker that initialised CUDA would leave its forked trials without a GPU."""
    asks, worker = getattr(torch._C, "_cuda_getDeviceCount", None), os.getpid()

    def counting() -> int:
        assert os.getpid() != worker, "the worker initialised CUDA"
        assert asks is not None
        return asks()

    if asks is not None:
        torch._C._cuda_getDeviceCount = counting  # pyright: ignore[reportAttributeAccessIssue]


def command(job: dict[str, Any]) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["rootstock", *job["argv"]]
    forbid_gpus_to_workers()
    if job["fault"] is not None:
        inject(job["fault"])
    main()


if __name__ == "__main__":
    command(json.loads(sys.argv[1]))
