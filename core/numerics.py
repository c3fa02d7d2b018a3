"""Losses and statistics are computed in float32 at least, whatever autocast made of their input."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float32; in float64 if it is, so that a loss can be checked in it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
