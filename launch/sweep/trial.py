"""A trial in a process of its own: its memory is freed when it ends, and a crash ends no other trial.

It is forked from the worker, so imports are paid for once. The worker uses neither torch's threads nor a GPU, whose state a fork would
break. Terminal signals reach only the worker, which passes them on to its trials.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path

from ...core.interrupt import REQUESTS
from ..cluster.launcher import stop_with_parent
from ..exits import answer
from .appraisal import redirect_output, weigh_trial
from .plan import Sweep
from .study import Claim

MISTAKE, CRASHED = 2, 70  # exit codes: 2 as in exits.py; 70 for a traceback, which exits.py has no code for
BEYOND = 71  # the exit code of a trial whose network costs more than the budget
LOG = "logs/trial.log"


@dataclass(frozen=True)
class Attempt:
    """One process that works on a trial. slot: index of its place among this worker's parallel trials, from 0."""

    claim: Claim
    slot: int
    process: ForkProcess
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def ask(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)


def start_trial(sweep: Sweep, claim: Claim, slot: int, slots: int, others: Sequence[Claim]) -> Attempt:
    """Begin or resume the trial. slots: trials at the same time. others: this worker's other claims, which the trial must not hold."""
    folder = sweep.folder(claim.number)
    (folder / LOG).parent.mkdir(exist_ok=True)
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(sweep, claim, others, slot, slots, os.getpid()), name=folder.name
    )
    # Blocked until the trial has its own handlers: with the worker's, a request to stop would be lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Attempt(claim, slot, process)


def failure_reason(folder: Path) -> str:
    """The last line of a trial's log."""
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "its log is empty"


def _work(sweep: Sweep, claim: Claim, others: Sequence[Claim], slot: int, slots: int, worker: int) -> None:
    redirect_output(sweep.folder(claim.number) / LOG)
    os.setsid()  # the terminal's Ctrl-C then goes to the worker only, which forwards it
    for number in REQUESTS:  # these hold outside of `fit`, whose own handlers save first
        signal.signal(number, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
    stop_with_parent(worker)
    for other in others:
        other.free()
    os.register_at_fork(
        after_in_child=claim.free
    )  # a loader process may outlive us by seconds and must not hold the lock
    _share_machine(slot, slots)
    sys.exit(_exit_code(sweep, claim))


def _exit_code(sweep: Sweep, claim: Claim) -> int:
    from ..pipeline.run import run_pipeline
    from ..verbs import execute, resolve

    overrides = sweep.overrides(claim.number, claim.params)

    def work() -> int:
        if sweep.cost is not None and not weigh_trial(sweep, claim.number, claim.params):
            return BEYOND
        if sweep.verb == "run":
            run_pipeline(sweep.file, overrides, execute, resolve)
        else:
            execute(sweep.verb, sweep.file, overrides)
        return 0

    try:
        return answer(work)
    except Exception:
        traceback.print_exc()
        return CRASHED


def _share_machine(slot: int, slots: int) -> None:
    """Give each parallel trial one GPU, in turn, and its share of the CPU cores."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    if slots > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // slots))
