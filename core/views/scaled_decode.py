"""Crops out of JPEGs that were decoded at 1/2, 1/4 or 1/8 of their size: at which, and where a box then lies.

libjpeg then computes only the low frequencies of each block. What is left, above all reading the Huffman codes, still takes
two thirds of the time, so this pays for large pictures alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = (1, 2, 4, 8)
WORTHWHILE = 4_000_000
"""Pixels times s from which on decoding at 1/s, by Pillow and after drawing boxes, is quicker than the fastest full decoder."""


def useful_scale(height: int, width: int, size: int) -> int:
    """The largest s of 1, 2, 4, 8 such that a box of height x width, decoded at 1 / s, is still at least size x size."""
    return max(s for s in SCALES if s == 1 or min(height, width) >= s * size)


def worthwhile(height: int, width: int, scale: int) -> bool:
    """Whether decoding a picture of height x width at 1 / scale saves time."""
    return scale > 1 and height * width * scale >= WORTHWHILE


def scaled_boxes(boxes: Tensor, full: Tensor, stored: Tensor) -> Tensor:
    """Boxes in pictures of sizes `full` -> the same parts of those pictures as they are `stored`, decoded at 1 / s.

    boxes: int64 [N, 4]; full, stored: int64 [N, 2] as H, W. libjpeg makes one pixel of s and rounds sides up, so a coordinate
    is divided by s whatever the sides are. A box's sides and its centre are rounded: both move by at most half a pixel of the
    smaller picture, which is at most half a pixel of a view that `useful_scale` was asked for. At s = 1 nothing moves.
    """
    factors = torch.tensor(SCALES)[:, None, None]
    rounded_up = (full + factors - 1) // factors  # [4, N, 2]
    # A picture has at least s pixels a side if it was scaled by s, so no smaller s gives the same sides.
    scale = torch.tensor(SCALES)[(rounded_up == stored).all(2).int().argmax(0)][:, None]
    corners, sides = boxes.double().div(scale).split(2, 1)
    rounded = sides.round().clamp(min=1)
    # A half goes to the even neighbour: over many boxes views are shifted to no side.
    corners = (corners + (sides - rounded) / 2).round().clamp(min=0).minimum(stored - rounded)
    return torch.cat([corners, rounded], 1).long()
