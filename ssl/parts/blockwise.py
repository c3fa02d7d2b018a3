"""Block-wise masks (Bao et al. 2022, BEiT, arXiv:2106.08254, algorithm 1), as iBOT and DINOv2 draw them, as a function of `Draws`.

The authors add blocks to one image in a loop until it is full or ten tries in a row have failed. Here one loop of a fixed number of
tries serves all images, so shapes are static and a mask depends only on its image's position.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...core.draws import Draws

ASPECT = 0.3  # the smallest height / width of a block; the largest is its inverse
MAX_FAILURES = 10  # failed tries in a row that end an image's mask
# 99 % of the authors' loops end within 31 tries (iBOT) or 23 (DINOv2); the others hide a few patches less here.
TRIES = 32


def blockwise_masks(draws: Draws, grid: tuple[int, int], wanted: Tensor, least: int) -> Tensor:
    """Masks of rectangles, bool [N, V, rows, columns], True where hidden.

    wanted: int64 [N, V], number of patches to hide; a few less are hidden where no more block fits. least: the area of a block, in patches,
    is drawn between this and what is still wanted.
    """
    rows, columns = grid
    # float64, so that all devices round alike (except for ties).
    size, ratio, *place = draws.uniform("blocks", wanted.shape[1], TRIES, 4).double().unbind(-1)
    stretch = ((2.0 * ratio - 1.0) * (-0.5 * math.log(ASPECT))).exp()  # the root of height / width, log-uniform
    stretch, place = torch.stack([stretch, 1.0 / stretch], -1), torch.stack(place, -1)
    sides = torch.tensor([rows, columns], device=wanted.device)
    down, across = torch.arange(rows, device=wanted.device), torch.arange(columns, device=wanted.device)
    mask = torch.zeros(*wanted.shape, rows, columns, dtype=torch.bool, device=wanted.device)
    left, failed = wanted, torch.zeros_like(wanted)
    for turn in range(TRIES):
        area = least + (left - least) * size[..., turn]
        extent = (area.sqrt()[..., None] * stretch[..., turn, :]).round().long()  # height, width
        start = (place[..., turn, :] * (sides - extent + 1)).floor().long()
        end = start + extent
        inside_rows = (down >= start[..., :1]) & (down < end[..., :1])
        inside_columns = (across >= start[..., 1:]) & (across < end[..., 1:])
        added = inside_rows[..., :, None] & inside_columns[..., None, :] & ~mask
        gain = added.sum((-2, -1))
        # A block must be smaller than the grid and hide something, but not more than is still wanted.
        fits = (extent < sides).all(-1) & (gain > 0) & (gain <= left) & (failed < MAX_FAILURES)
        mask = mask | (added & fits[..., None, None])
        left = left - gain * fits
        failed = torch.where(fits, 0, failed + 1)
    return mask


# torch.compile would unroll the loop, which takes minutes.
_uncompiled: Callable[[Draws, tuple[int, int], Tensor, int], Tensor] = torch.compiler.disable(blockwise_masks)  # pyright: ignore[reportAssignmentType]


def max_hidden(grid: tuple[int, int], ratio: tuple[float, float]) -> int:
    """The largest number of patches that a mask of `view_masks` hides, at least 1."""
    return max(1, math.floor(grid[0] * grid[1] * ratio[1]))


def view_masks(
    draws: Draws, grid: tuple[int, int], views: int, *, ratio: tuple[float, float], probability: float, least: int
) -> Tensor:
    """A mask for each view of each image, bool [views, N, rows * columns], True where hidden.

    Each view is masked with `probability`, independently; the fraction of its patches to hide is uniform in `ratio`.
    """
    count = grid[0] * grid[1]
    part = draws.uniform("mask/ratio", views, low=ratio[0], high=ratio[1]).double()
    wanted = (part * count).floor().long().clamp(max=max_hidden(grid, ratio))
    wanted = torch.where(draws.bernoulli("mask/used", probability, views), wanted, 0)
    return _uncompiled(draws.stream("mask"), grid, wanted, least).flatten(2).transpose(0, 1)
