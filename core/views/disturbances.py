"""Rotation, scale, occlusion and clutter: what handcrafted features were made to bear, and what a test of robustness shows.

They are no part of ImageNet-C. Where the picture is moved, what comes in at its border is mirrored, so that no black corner gives the
corruption away. All numbers are shares of the picture's side, so they mean the same at any size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..draws import Draws

GRAY = 0.5  # of what covers a picture
BARS, BAR_LENGTH, BAR_WIDTH = 24, 0.3, 0.04  # the most bars of clutter, and their shares of the side


def rotation(x: Tensor, draws: Draws, degrees: float) -> Tensor:
    """x: [N, C, H, W]; turned by so many degrees about the middle, to the left or to the right by draw, bilinearly."""
    sign = torch.where(draws.bernoulli("left", 0.5), 1.0, -1.0).to(x)
    angle = sign * math.radians(degrees)
    down, right = _from_middle(x)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return _sampled(x, cos * down + sin * right, cos * right - sin * down)


def scale(x: Tensor, draws: Draws, factor: float) -> Tensor:
    """Shown larger or smaller by this factor, by draw; a smaller one is the mean of 2 x 2 samples a pixel, with mirrored surroundings."""
    larger = draws.bernoulli("larger", 0.5)
    by = torch.where(larger, 1 / factor, factor).to(x)[:, None, None]
    down, right = _from_middle(x)
    # Of a larger one, samples between pixels would only blur it.
    apart = torch.where(larger, 0.0, 0.25).to(x)[:, None, None]
    parts = [_sampled(x, by * (down + dy * apart), by * (right + dx * apart)) for dy in (-1, 1) for dx in (-1, 1)]
    return torch.stack(parts).mean(0)


def occlusion(x: Tensor, draws: Draws, area: float) -> Tensor:
    """A gray rectangle of the picture's shape covers this share of it, at a place by draw, wholly inside."""
    height, width = (max(1, round(math.sqrt(area) * side)) for side in x.shape[2:])
    top = draws.integers("top", x.shape[2] - height + 1).to(x.device)[:, None]
    left = draws.integers("left", x.shape[3] - width + 1).to(x.device)[:, None]
    rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
    covered = ((rows >= top) & (rows < top + height))[:, :, None] & ((columns >= left) & (columns < left + width))[
        :, None
    ]
    return torch.where(covered[:, None], torch.full_like(x, GRAY), x)


def clutter(x: Tensor, draws: Draws, bars: float) -> Tensor:
    """So many bars of a colour, place and direction by draw lie over the picture: edges that are no part of its object.

    A bar is 0.3 of the side long and 0.04 wide, at least a pixel. The bars of a lower severity are among those of a higher one where both
    have the same draws.
    """
    places, colours = (draws.uniform(name, BARS, n).to(x) for name, n in (("bar", 3), ("colour", x.shape[1])))
    side = min(x.shape[2:])
    length, width = BAR_LENGTH * side / 2, max(1.0, BAR_WIDTH * side) / 2
    rows, columns = (torch.arange(n, device=x.device, dtype=x.dtype) for n in x.shape[2:])
    for bar in range(int(bars)):
        y, x0, angle = places[:, bar, :, None, None].unbind(1)
        down, right = rows[:, None] - y * (len(rows) - 1), columns - x0 * (len(columns) - 1)
        cos, sin = (math.pi * angle).cos(), (math.pi * angle).sin()
        inside = ((cos * right + sin * down).abs() <= length) & ((cos * down - sin * right).abs() <= width)
        x = torch.where(inside[:, None], colours[:, bar, :, None, None], x)
    return x


def _from_middle(x: Tensor) -> tuple[Tensor, Tensor]:
    """How far each pixel's centre lies below and to the right of the middle, in pixels: [1, H, 1] and [1, 1, W]."""
    down, right = (torch.arange(n, device=x.device, dtype=x.dtype) - (n - 1) / 2 for n in x.shape[2:])
    return down[None, :, None], right[None, None]


def _sampled(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """The picture at places so far from its middle, [N, H, W] in pixels, bilinearly; mirrored beyond its outermost pixels."""
    height, width = x.shape[2:]
    shape = torch.broadcast_shapes(down.shape, right.shape, (len(x), height, width))
    # grid_sample counts from -1, the first pixel's centre, to 1, the last one's.
    grid = [place * (2 / max(1, side - 1)) for place, side in ((right, width), (down, height))]
    where = torch.stack([part.expand(shape) for part in grid], -1)
    return F.grid_sample(x, where, mode="bilinear", padding_mode="reflection", align_corners=True)
