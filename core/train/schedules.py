"""Schedules as functions of progress, 0 at the first step and 1 at the end: what methods use for momenta and temperatures.

Progress is a float, or a float64 scalar tensor inside a compiled method (core/train/compile.py); the result has the same type.
"""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor


@overload
def cosine(start: float, end: float, progress: float) -> float: ...
@overload
def cosine(start: float, end: float, progress: Tensor) -> Tensor: ...
def cosine(start: float, end: float, progress: float | Tensor) -> float | Tensor:
    """From start to end along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5)."""
    angle = math.pi * progress
    return end + (start - end) * 0.5 * (1.0 + (angle.cos() if isinstance(angle, Tensor) else math.cos(angle)))


@overload
def ramp(start: float, end: float, progress: float, over: float) -> float: ...
@overload
def ramp(start: float, end: float, progress: Tensor, over: float) -> Tensor: ...
def ramp(start: float, end: float, progress: float | Tensor, over: float) -> float | Tensor:
    """Linear from start to end during the first fraction `over` of the training, then end. over = 0: always end."""
    if isinstance(progress, Tensor):
        part = (progress / over).clamp(max=1.0) if over > 0.0 else torch.ones_like(progress)
    else:
        part = min(progress / over, 1.0) if over > 0.0 else 1.0
    return start + (end - start) * part
