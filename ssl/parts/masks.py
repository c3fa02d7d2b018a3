"""Masks over the patches of an image, as functions of `Draws`: row i depends on position i only, whatever batch it is in."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ...core.draws import Draws
from ...core.model.vit_tokens import take
from ...core.numerics import eager_cpu

Grid = tuple[int, int]  # rows, columns
Range = tuple[float, float]


def random_units(draws: Draws, grid: Grid, hidden: int) -> Tensor:
    """A random set of `hidden` cells of the grid: bool [N, rows, columns], True where hidden."""
    order = draws.permutation("mask", grid[0] * grid[1])
    mask = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :hidden], True)
    return mask.view(-1, *grid)


def enlarge(mask: Tensor, factor: int) -> Tensor:
    """[N, H, W] -> [N, H * factor, W * factor]: each cell is repeated factor x factor times."""
    return mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def random_blocks(draws: Draws, grid: Grid, count: int, scale: Range, aspect: Range) -> Tensor:
    """`count` rectangles of one size at random places: bool [N, count, rows, columns], True inside.

    scale: range of their area as a fraction of the grid's. aspect: range of height / width. Details follow the code of Assran et al. 2023
    (arXiv:2301.08243, src/masks/multiblock.py), which the paper does not describe: all blocks of an image share one size, one number
    gives both area and aspect (the largest are the tallest), and blocks are smaller than the grid and leave out its last row and column.
    """
    rows, columns = grid
    height, width = (side[:, None] for side in _sides(draws.uniform("size").double(), grid, scale, aspect))
    top = (draws.uniform("top", count).double() * (rows - height)).long()
    left = (draws.uniform("left", count).double() * (columns - width)).long()
    down = _between(torch.arange(rows, device=top.device), top, height)
    across = _between(torch.arange(columns, device=top.device), left, width)
    return down[..., :, None] & across[..., None, :]


def block_sizes(grid: Grid, scale: Range, aspect: Range) -> list[Grid]:
    """Every (height, width) that `random_blocks` can draw. Methods with static shapes need them."""
    cells, steps = grid[0] * grid[1], {0.0, 1.0}
    for area in range(1, cells + 1):
        steps.add(_reaches(area / cells, scale))
        for half in (side + 0.5 for side in range(max(grid))):
            steps |= {_reaches(half**2 / area, aspect), _reaches(area / half**2, aspect)}
    ends = sorted(step for step in steps if 0.0 <= step <= 1.0)
    # The size is constant between two steps. At a step rounding decides, and both neighbours are in the list.
    middles = [(a + b) / 2.0 for a, b in pairwise(ends)]
    height, width = _sides(torch.tensor(middles, dtype=torch.float64), grid, scale, aspect)
    return sorted(set(zip(height.tolist(), width.tolist(), strict=True)))


def _sides(number: Tensor, grid: Grid, scale: Range, aspect: Range) -> tuple[Tensor, Tensor]:
    """Heights and widths, int64 [N], from numbers in 0..1, float64 [N], in which all devices round alike."""
    area = ((scale[0] + number * (scale[1] - scale[0])) * (grid[0] * grid[1])).floor()
    ratio = aspect[0] + number * (aspect[1] - aspect[0])
    height, width = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    return height.clamp(1, max(1, grid[0] - 1)), width.clamp(1, max(1, grid[1] - 1))


def _reaches(value: float, bounds: Range) -> float:
    """The number in 0..1 at which a range reaches a value; a number outside of 0..1 if it never does."""
    return (value - bounds[0]) / (bounds[1] - bounds[0]) if bounds[1] > bounds[0] else -1.0


def _between(index: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """[cells], [N, K], [N, 1] -> bool [N, K, cells]."""
    return (index >= start[..., None]) & (index < (start + length)[..., None])


def remove_targets(block: Tensor, targets: Tensor, least: int) -> Tensor:
    """A block without the targets, bool [N, rows, columns].

    block: bool [N, rows, columns]. targets: bool [N, K, rows, columns]. Where fewer than `least` cells would remain, as many of the last
    targets as necessary stay in the block (the authors' code does so after 20 tries).
    """
    left = block[:, None] & ~(targets.cumsum(1) > 0)  # without the first, the first two, ...
    removed = (left.sum((2, 3)) >= least).sum(1)
    choices = torch.cat([block[:, None], left], 1)
    return choices.gather(1, removed.view(-1, 1, 1, 1).expand(-1, 1, *block.shape[1:]))[:, 0]


def keep_first(mask: Tensor, order: Tensor, most: int) -> Tensor:
    """Keep the first `most` True cells of each row of bool [N, L], in the order of `order`, int64 [N, L]; all if there are fewer."""
    there = mask.gather(1, order)
    kept = there & (there.cumsum(1) <= most)
    return torch.zeros_like(mask).scatter(1, order, kept)


def true_indices(mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Indices of the True cells of each row of bool [..., L], ascending, padded or cut to `length`.

    Returns int64 [..., length] and bool [..., length], False at padding.
    """
    index = (~mask).int().argsort(dim=-1, stable=True)[..., :length]
    return index, torch.arange(length, device=mask.device) < mask.sum(-1, keepdim=True)


def drop_padding(index: Tensor, real: Tensor, length: int) -> Tensor:
    """The indices of `true_indices` that are no padding, into all rows one after the other: int64 [R].

    index: int64 [..., K], into rows of `length`. real: bool [..., K]. Returns the index unchanged where shapes must not depend on the data,
    and where nothing is real.
    """
    if not eager_cpu(index) or not real.any():
        return index
    first = torch.arange(index[..., 0].numel()) * length
    return (index + first.view(*index.shape[:-1], 1))[real]


def gather_patches(patches: Tensor, index: Tensor) -> Tensor:
    """Patches [..., L, D] at indices of `true_indices`, [..., K] -> [..., K, D], or of `drop_padding`, [R] -> [R, D]."""
    if index.ndim == 1 < patches.ndim - 1:
        return patches.flatten(0, -2)[index]
    return take(patches, index)
