"""A trial as a process of its own: its memory goes back when it ends, and what kills it kills no other.

It is forked from the worker, which has paid for the imports and has used neither torch's threads nor a GPU (importing and checking configs
asks no driver), so that nothing is copied halfway through. Terminal and signals are the worker's; the trial hears from it alone.
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
from .plan import Sweep
from .study import Claim

MISTAKE, CRASHED = 2, 70  # exit codes beside those of exits.py, which has none of its own for a traceback
LOG = "logs/trial.log"


@dataclass(frozen=True)
class Attempt:
    """One process that works on a trial. slot: its number among those at one time in this worker, from 0."""

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


def start(sweep: Sweep, claim: Claim, slot: int, slots: int, others: Sequence[Claim]) -> Attempt:
    """Begin or resume the trial. slots: how many run at one time. others: this worker's claims on others, not the trial's to hold."""
    folder = sweep.folder(claim.number)
    (folder / LOG).parent.mkdir(exist_ok=True)
    arguments = (sweep.verb, sweep.file, sweep.overrides(claim.number, claim.params), folder / LOG)
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(*arguments, claim, others, slot, slots, os.getpid()), name=folder.name
    )
    # Held back until the trial has handlers of its own: with the worker's it would not hear a request to stop.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Attempt(claim, slot, process)


def reason(folder: Path) -> str:
    """The last thing that a trial said."""
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def _work(
    verb: str,
    file: str,
    overrides: list[str],
    log: Path,
    claim: Claim,
    others: Sequence[Claim],
    slot: int,
    slots: int,
    worker: int,
) -> None:
    _speak_to(log)
    os.setsid()  # the terminal's Ctrl-C goes to the worker, which asks once
    for number in REQUESTS:  # outside of `fit`, which saves before it stops
        signal.signal(number, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
    stop_with_parent(worker)
    for other in others:
        other.free()
    os.register_at_fork(after_in_child=claim.free)  # a loader process may outlive us by seconds
    _share_machine(slot, slots)
    sys.exit(_answer(verb, file, overrides))


def _answer(verb: str, file: str, overrides: list[str]) -> int:
    from ..pipeline.run import run_pipeline
    from ..verbs import execute, resolve

    def work() -> None:
        if verb == "run":
            run_pipeline(file, overrides, execute, resolve)
        else:
            execute(verb, file, overrides)

    try:
        return answer(work)
    except Exception:
        traceback.print_exc()
        return CRASHED


def _speak_to(log: Path) -> None:
    sys.stdout = sys.stderr = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - as long as we live
    for descriptor in (1, 2):
        os.dup2(sys.stdout.fileno(), descriptor)


def _share_machine(slot: int, slots: int) -> None:
    """Trials at one time take the GPUs in turn, and each its part of the cores."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    if slots > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // slots))
