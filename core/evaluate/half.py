"""Scores in float16, in which they are kept, without moving a prediction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LARGEST = float(torch.finfo(torch.float16).max)


def to_half(scores: Tensor) -> Tensor:
    """Scores [..., K] as float16 on the CPU; larger ones than it holds become its largest, minus infinity its smallest.

    Rounding may make the largest of a row equal to one before it, which `argmax` would take instead: those before it are lowered by one
    step. So the class with the largest score, of equals the first, stays the same.
    """
    scores = scores.detach()
    half = scores.clamp(-LARGEST, LARGEST).to(torch.float16).cpu()
    winner = scores.argmax(-1, keepdim=True).cpu()
    best = half.gather(-1, winner)
    before = torch.arange(half.shape[-1]) < winner
    tied = before & (half == best)
    if bool(tied.any()):
        lower = torch.from_numpy(np.nextafter(best.numpy(), np.float16(-np.inf)))
        # All scores at the bottom of the range: the winner is raised instead.
        bottom = torch.isinf(lower)
        half = torch.where(tied & ~bottom, lower, half)
        if bool(bottom.any()):
            raised = torch.from_numpy(np.nextafter(best.numpy(), np.float16(np.inf)))
            half = half.scatter(-1, winner, torch.where(bottom & tied.any(-1, keepdim=True), raised, best))
    return half
