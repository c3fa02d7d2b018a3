"""Refreshes: a method looks over the whole target before declared steps (`refresh_every` and `refresh` of core/method.py).

A refresh comes before the update of its step, and the checkpoint after the step before it. So a run that resumes at such a step looks
again, with the weights that it had; one that resumes later finds the result in the method's buffers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from .. import phase
from ..method import Method, Overview


class Refresh(NamedTuple):
    """every: steps between two refreshes, the first before step 0; 0: never. look: the whole target, called by all processes."""

    every: int
    look: Callable[[], Overview]

    @staticmethod
    def of(method: Method, steps: int, steps_per_epoch: int, look: Callable[[], Overview]) -> Refresh:
        """As the method asks for it. steps_per_epoch: the target's."""
        if method.refresh_every is None:
            return NEVER
        return Refresh(max(1, method.refresh_every.steps(steps_per_epoch, steps)), look)

    @torch.no_grad()
    def before(self, method: Method, step: int, steps: int) -> float:
        """Refresh the method if that is due before a step of `steps`, and leave it in training mode; returns the seconds that it took."""
        if not self.every or step % self.every:
            return 0.0
        began = time.perf_counter()
        with phase.during(phase.EVALUATION):
            method.eval()
            method.refresh(self.look(), step / steps)
        method.train()
        return time.perf_counter() - began


def _nothing() -> Overview:
    raise RuntimeError("nothing is refreshed")


NEVER = Refresh(0, _nothing)
