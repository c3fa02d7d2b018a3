"""Histograms of oriented gradients as features: what a learned backbone has to beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from ...core.errors import UserError
from .inputs import check_shape

# Dalal & Triggs clip a normalised block's entries at this value, then normalise again ("L2-Hys").
CLIP = 0.2


class Hog(nn.Module):
    """Histograms of oriented gradients (Dalal & Triggs 2005, section 6), [N, channels, size, size] in 0..1 -> [N, D].

    The gradient is that of [-1, 0, 1], with the border repeated, in the channel where it is largest. Its length is shared linearly between
    the two nearest of `orientations` unsigned directions, and summed in square cells without interpolation between cells. Each 2 x 2 cells,
    overlapping by one cell, are a block, which is L2-Hys normalised. D = (size / cell - 1)^2 * 4 * orientations, laid out as block row,
    block column, cell row, cell column, direction. size: side of the images in pixels, a multiple of cell.

    cell: Side of a cell in pixels, which divides the image's side at least twice; null is an eighth of the side, 4 at 32 px.
    orientations: Number of directions in 0 to 180 degrees, 2 or more.

    Raises UserError for cells that do not fit, and for fewer than 2 orientations.
    """

    def __init__(self, size: int, channels: int = 3, *, cell: int | None = None, orientations: int = 9) -> None:
        super().__init__()
        if cell is None:
            cell = max(1, size // 8)
        if cell < 1 or size % cell or size // cell < 2:
            fitting = [str(side) for side in range(1, size // 2 + 1) if not size % side]
            raise UserError(
                f"backbone.args.cell: hog needs at least two whole cells a side, and cells of {cell} px don't fit images of {size} px; "
                f"give cell as {' or '.join(fitting[-3:]) or 'a part of a larger data.size'}"
            )
        if orientations < 2:
            raise UserError(f"backbone.args.orientations: expected 2 or more, got {orientations}; 9 is usual")
        self.shape, self.cell, self.orientations = (channels, size, size), cell, orientations
        self.feature_dim = (size // cell - 1) ** 2 * 4 * orientations

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images, self.shape)
        length, angle = _gradient(images.float())
        position = angle / math.pi * self.orientations - 0.5
        below = position.floor()
        share = position - below
        first = below.long() % self.orientations
        second = (first + 1) % self.orientations
        n, _, height, width = length.shape
        votes = length.new_zeros(n, self.orientations, height, width)
        votes.scatter_add_(1, first, length * (1 - share)).scatter_add_(1, second, length * share)
        cells = avg_pool2d(votes, self.cell) * self.cell**2
        # [N, O, rows, columns, 2, 2] -> [N, rows, columns, 2, 2, O]
        blocks = cells.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 4, 5, 1).flatten(3)
        return _unit(_unit(blocks).clamp(max=CLIP)).flatten(1)


def _gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Length and unsigned angle in [0, pi] of the strongest channel's gradient, both [N, 1, H, W]."""
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    square = dx.square() + dy.square()
    strongest = square.argmax(dim=1, keepdim=True)
    dx, dy, square = (t.gather(1, strongest) for t in (dx, dy, square))
    return square.sqrt(), torch.remainder(torch.atan2(dy, dx), math.pi)


def _unit(blocks: Tensor, epsilon: float = 1e-5) -> Tensor:
    """v / sqrt(|v|^2 + epsilon^2) along the last axis: an empty block stays 0."""
    return blocks / torch.sqrt(blocks.square().sum(-1, keepdim=True) + epsilon**2)
