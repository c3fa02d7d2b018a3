"""Local binary patterns as features: texture by comparing each pixel with those around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .colour import shares_of_cells
from .inputs import at_least, check_shape, to_gray, to_levels, whole_cells

_NEIGHBOURS = 8


class LocalBinaryPatterns(nn.Module):
    """Histograms of uniform local binary patterns (Ojala, Pietikainen & Maenpaa 2002, TPAMI 24:971).

    [N, channels, size, size] in 0..1 -> [N, D].

    Each pixel of the gray image, in whole levels, is compared with 8 points on a circle around it (bilinear between pixels, the border
    repeated): bit p is 1 where the point at angle 2 pi p / 8, counterclockwise from the right, is at least as bright. Codes whose ring has
    at most two changes between 0 and 1 are a kind each (58), all others one kind. In each square cell the shares of the 59 kinds are taken,
    over the number of cells, and square-rooted (Hellinger). D = (size / cell)^2 * 59, laid out as cell (row by row), kind. size: side of
    the images in pixels.

    radius: Radius of the circle in pixels, at least 1.
    cell: Side of a cell in pixels, which divides the image's side; null is the largest such side up to a quarter, 8 at 32 px.

    Raises UserError for numbers out of range.
    """

    kinds: Tensor

    def __init__(self, size: int, channels: int = 3, *, radius: float = 1.0, cell: int | None = None) -> None:
        super().__init__()
        at_least("lbp", "radius", radius, 1, "1")
        self.shape, self.radius = (channels, size, size), radius
        self.cell = whole_cells("lbp", "cell", size, cell, 4)
        self.register_buffer("kinds", uniform_kinds(), persistent=False)
        self.feature_dim = (size // self.cell) ** 2 * (int(self.kinds.max()) + 1)

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images, self.shape)
        levels = to_levels(to_gray(images.float()))[:, 0].double()
        codes = torch.zeros_like(levels, dtype=torch.int64)
        for bit in range(_NEIGHBOURS):
            # Equal levels are as bright, whatever the rounding of bilinear weights.
            codes |= (self._neighbour(levels, bit) >= levels - 1e-6).long() << bit
        grid = self.shape[1] // self.cell
        return shares_of_cells(self.kinds[codes], int(self.kinds.max()) + 1, grid).sqrt()

    def _neighbour(self, levels: Tensor, bit: int) -> Tensor:
        """The level at a pixel's neighbour on the circle, [N, H, W]."""
        angle = 2 * math.pi * bit / _NEIGHBOURS
        # Rounded as in scikit-image, so that points on the axes are pixels.
        down, right = round(-self.radius * math.sin(angle), 5), round(self.radius * math.cos(angle), 5)
        reach = math.ceil(self.radius) + 1
        padded = pad(levels[:, None], (reach,) * 4, mode="replicate")[:, 0]
        (y, fy), (x, fx) = ((math.floor(v), v - math.floor(v)) for v in (down, right))
        height, width = levels.shape[1:]

        def shifted(dy: int, dx: int) -> Tensor:
            return padded[:, reach + dy : reach + dy + height, reach + dx : reach + dx + width]

        above = shifted(y, x) * (1 - fx) + shifted(y, x + 1) * fx
        below = shifted(y + 1, x) * (1 - fx) + shifted(y + 1, x + 1) * fx
        return above * (1 - fy) + below * fy


def uniform_kinds() -> Tensor:
    """The kind of each code, int64 [256]: uniform codes by rising code are 0 to 57, all others 58."""
    codes = range(2**_NEIGHBOURS)
    uniform = [code for code in codes if changes(code) <= 2]
    place = {code: kind for kind, code in enumerate(uniform)}
    return torch.tensor([place.get(code, len(uniform)) for code in codes])


def changes(code: int) -> int:
    """How often neighbouring bits differ on the ring of 8 bits."""
    turned = (code >> 1) | ((code & 1) << (_NEIGHBOURS - 1))
    return (code ^ turned).bit_count()
