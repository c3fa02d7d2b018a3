"""Runs commands without paying for imports each time: imports once, then forks a child for each job of an input line, in parallel.

A job is {"argv", "log", "fault"}; a fault is {"at", "signal", "to"}: a trial that is about to begin the step after `at` completed ones
sends the signal to itself ("trial") or to the worker that began it ("worker"), and continues once the request to stop has arrived.
The answer is the list of exit codes.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from typing import Any

import torch

import rootstock.launch.verbs
import rootstock.tests.launch.sweep.warm  # noqa: F401 - imported before forking
from rootstock.core.train import loop
from rootstock.launch.cli import main
from rootstock.tests.driver import answer

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


def child(job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = answer(partial(command, job))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return pid


if __name__ == "__main__":
    for line in sys.stdin:
        pids = [child(job) for job in json.loads(line)]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
