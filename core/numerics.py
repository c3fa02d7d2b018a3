"""How numbers are computed: the precision of losses, and where shapes may depend on the data."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in float32, or unchanged if it is float64. Losses and statistics begin with it.

    Autocast still computes products of matrices in half precision: a loss that multiplies matrices does so under
    `torch.autocast(x.device.type, enabled=False)`.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def approach(mine: Tensor, other: Tensor, share: float | Tensor = 1.0, skipped: Tensor | None = None) -> None:
    """mine <- mine + share (other - mine), in place. skipped: `Method.skipped`; where it is true not a bit changes, and nothing waits."""
    if skipped is not None:
        share = torch.where(skipped, 0.0, share)
    mine.lerp_(other, share.to(mine) if isinstance(share, Tensor) else share)


def unless_skipped(new: Tensor, old: Tensor, skipped: Tensor | None) -> Tensor:
    """new, or old where the step was skipped; nothing waits. skipped: `Method.skipped`."""
    return new if skipped is None else torch.where(skipped, old, new)


def eager_cpu(x: Tensor) -> bool:
    """Whether shapes may depend on the values in x: true on the CPU without torch.compile, where nothing waits for a device."""
    return x.is_cpu and not torch.compiler.is_compiling()
