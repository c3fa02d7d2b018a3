"""Random erasing, batched: one box of each image is overwritten, drawn as in torchvision."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..draws import Draws

Fill = Literal["mean", "noise"]
TRIES, RATIO = 10, (0.3, 3.3)


def random_erasing(
    x: Tensor,
    draws: Draws,
    p: float,
    scale: tuple[float, float],
    fill: Fill,
    ratio: tuple[float, float] = RATIO,
) -> Tensor:
    """Random erasing (Zhong et al. 2020, arXiv:1708.04896) with probability p; x: normalised float [N, C, H, W].

    scale: range of the box's part of the area. fill: mean (zeros, since x is normalised) or noise (standard normal values).
    ratio: range of the box's height / width. Changes x itself on the CPU.
    """
    channels, height, width = x.shape[1:]
    boxes = erasing_boxes(draws, height, width, scale, ratio)
    boxes = boxes * draws.bernoulli("p", p)[:, None]  # an empty box erases nothing
    if not x.is_cpu or torch.compiler.is_compiling():
        value = draws.normal("noise", channels, height, width) if fill == "noise" else torch.zeros_like(x)
        return torch.where(within(boxes, height, width), value, x)
    for n, (top, left, h, w) in enumerate(boxes.tolist()):
        if h:
            box = (slice(top, top + h), slice(left, left + w))
            own = Draws(draws.seed, draws.positions[n : n + 1], draws.prefix)
            noise = own.normal("noise", channels, height, width)[0][:, *box] if fill == "noise" else 0.0
            x[n, :, *box] = noise
    return x


def erasing_boxes(
    draws: Draws, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float] = RATIO
) -> Tensor:
    """int64 [N, 4] as top, left, height, width: the first of ten tries that is smaller than the image, else an empty box.

    The area is uniform in `scale`, height by width log-uniform in `ratio`.
    """
    area = height * width * draws.uniform("area", TRIES, low=scale[0], high=scale[1]).double()
    aspect = draws.uniform("aspect", TRIES, low=math.log(ratio[0]), high=math.log(ratio[1])).double().exp()
    h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (h < height) & (w < width)
    first = fits.int().argmax(1, keepdim=True)
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    unit = draws.uniform("corner", 2).double()
    top, left = (unit[:, 0] * (height - h + 1)).long(), (unit[:, 1] * (width - w + 1)).long()
    return torch.stack([top, left, h, w], 1) * fits.any(1)[:, None]


def within(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in each image's box (top, left, height, width), bool [N, 1, height, width]."""
    top, left, h, w = boxes[:, :, None].unbind(1)
    row, column = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    rows, columns = (row >= top) & (row < top + h), (column >= left) & (column < left + w)
    return rows[:, None, :, None] & columns[:, None, None, :]
