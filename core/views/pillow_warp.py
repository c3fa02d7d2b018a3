"""Affine warps of uint8 pictures as Pillow's `Image.transform` makes them, batched.

Its cubic has a = -1, and levels are cut, not rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .colour import constant
from .resample import Interpolation


def warp(x: Tensor, matrix: Tensor, fill: tuple[int, ...], interpolation: Interpolation) -> Tensor:
    """uint8 [N, C, H, W] -> the same: the pixel about (x, y) comes from (a x + b y + c, d x + e y + f), centres at halves.

    matrix: float64 [N, 6], (a, b, c, d, e, f). fill: levels from outside, one a channel (repeated).
    """
    n, channels, height, width = x.shape
    column = torch.arange(width, device=x.device, dtype=torch.float64) + 0.5
    row = (torch.arange(height, device=x.device, dtype=torch.float64) + 0.5)[:, None]
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)
    across, down = a * column + b * row + c, d * column + e * row + f
    inside = (across >= 0.0) & (across < width) & (down >= 0.0) & (down < height)
    across, down = across - 0.5, down - 0.5
    left, top = across.floor(), down.floor()
    reach = (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2)
    columns = [(left.long() + i).clamp(0, width - 1).flatten(1) for i in reach]
    rows = [(top.long() + i).clamp(0, height - 1).flatten(1) * width for i in reach]
    pixels = x.flatten(2).double()
    part = (across - left).flatten(1)[:, None]
    lines = []
    for start in rows:
        values = [pixels.gather(2, (start + place)[:, None].expand(n, channels, -1)) for place in columns]
        lines.append(_between(values, part))
    found = _between(lines, (down - top).flatten(1)[:, None]).view_as(x).clamp(0.0, 255.0).to(torch.uint8)
    outside = constant(tuple(float(fill[i % len(fill)]) for i in range(channels)), x.device, 1).to(torch.uint8)
    return torch.where(inside[:, None], found, outside)


def _between(values: list[Tensor], part: Tensor) -> Tensor:
    """The value at `part`, 0 to 1, of the way from the one in the middle to the next, in the order in which Pillow computes it."""
    if len(values) == 2:
        first, second = values
        return first + (second - first) * part
    first, second, third, fourth = values
    slope, curve, last = third - first, 2.0 * (first - second) + third - fourth, -first + second - third + fourth
    return second + part * (slope + part * (curve + part * last))
