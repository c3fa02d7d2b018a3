"""What this process does now: its step, its phase, and how far it is. The thread of heartbeat.py tells it to the other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PREPARING, FIRST_STEP, TRAINING, EVALUATION, CHECKPOINT, CLOSING = (
    "preparation",
    "first step",
    "training",
    "evaluation",
    "checkpoint",
    "results",
)


class Doing:
    """step: completed steps. done, total: how far the phase is, 0 where nobody counts. ticks: grows with everything that is done."""

    def __init__(self) -> None:
        self.step, self.phase, self.done, self.total, self.ticks = 0, PREPARING, 0, 0, 0


NOW = Doing()  # of this process


def begin(phase: str, step: int | None = None) -> None:
    """From now on this process is in another phase. step: completed steps; None leaves the number."""
    if step is not None:
        NOW.step = step
    NOW.phase, NOW.done, NOW.total = phase, 0, 0
    NOW.ticks += 1


def note_progress(done: int = 0, total: int = 0) -> None:
    """Something was done. done, total: how many of how many, where that is known."""
    NOW.done, NOW.total = done, total
    NOW.ticks += 1


@contextmanager
def during(phase: str) -> Iterator[None]:
    """This process is in that phase, and after it in the phase before. An error leaves it, so that the error can be placed."""
    before = NOW.phase
    begin(phase)
    yield
    begin(before)
