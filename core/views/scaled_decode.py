"""Crops from JPEGs decoded at 1/2, 1/4 or 1/8 of their size: choose the scale, and move boxes to the smaller image.

Scaled, libjpeg computes only the low frequencies of each block. The rest, mostly reading Huffman codes, still takes two thirds of
the time, so this is worthwhile only for large images.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = (1, 2, 4, 8)
WORTHWHILE = 4_000_000
"""From so many pixels times s on, drawing boxes and decoding at 1/s with Pillow is faster than the fastest full decoder."""


def useful_scale(height: int, width: int, size: int) -> int:
    """The largest s of 1, 2, 4, 8 such that a box of height x width, decoded at 1 / s, is still at least size x size."""
    return max(s for s in SCALES if s == 1 or min(height, width) >= s * size)


def worthwhile(height: int, width: int, scale: int) -> bool:
    """Whether decoding a picture of height x width at 1 / scale saves time."""
    return scale > 1 and height * width * scale >= WORTHWHILE


def scaled_boxes(boxes: Tensor, full: Tensor, stored: Tensor) -> Tensor:
    """Boxes in images of sizes `full` -> boxes of the same parts in the images of sizes `stored`, decoded at 1 / s.

    boxes: int64 [N, 4]; full, stored: int64 [N, 2] as H, W. libjpeg makes one pixel of s and rounds sides up, so every coordinate
    is divided by s. A box's sides and centre are rounded, so they move by at most half a pixel of the smaller image, which is at
    most half a pixel of the view if s came from `useful_scale`. At s = 1 nothing changes.
    """
    factors = torch.tensor(SCALES)[:, None, None]
    rounded_up = (full + factors - 1) // factors  # [4, N, 2]
    # An image that was scaled by s has at least s pixels a side, so no smaller s gives the same sides.
    scale = torch.tensor(SCALES)[(rounded_up == stored).all(2).int().argmax(0)][:, None]
    corners, sides = boxes.double().div(scale).split(2, 1)
    rounded = sides.round().clamp(min=1)
    # Halves are rounded to even, so that views have no bias to one side.
    corners = (corners + (sides - rounded) / 2).round().clamp(min=0).minimum(stored - rounded)
    return torch.cat([corners, rounded], 1).long()
