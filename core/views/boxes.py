"""Crop boxes of views, random and central, int64 [N, 4] as top, left, height, width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..draws import Draws

CROP_TRIES = 10


def random_boxes(
    draws: Draws, height: int | Tensor, width: int | Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """The boxes of torchvision's RandomResizedCrop, int64 [N, 4]: ten tries of (area, aspect), else a central box.

    height, width: one size for all images, or int64 [N]. scale: range of the part of the area. ratio: range of width / height.
    """
    height, width = _column(height, draws), _column(width, draws)
    area = height * width * draws.uniform("area", CROP_TRIES, low=scale[0], high=scale[1]).double()
    aspect = draws.uniform("aspect", CROP_TRIES, low=math.log(ratio[0]), high=math.log(ratio[1])).double().exp()
    w, h = (area * aspect).sqrt_().round_().long(), (area / aspect).sqrt_().round_().long()
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    found = fits.gather(1, first)
    whole = width.double() / height
    narrowed = (height * ratio[1]).round().long().clamp(min=1)
    lowered = (width / ratio[0]).round().long().clamp(min=1)
    w = torch.where(found, w.gather(1, first), torch.where(whole <= ratio[1], width, narrowed))
    h = torch.where(found, h.gather(1, first), torch.where(whole >= ratio[0], height, lowered))
    unit = draws.uniform("corner", 2).double()
    top = torch.where(found, (unit[:, :1] * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(found, (unit[:, 1:] * (width - w + 1)).long(), (width - w) // 2)
    return torch.cat([top, left, h, w], 1)


def centre_boxes(n: int, height: int | Tensor, width: int | Tensor, fraction: float, device: torch.device) -> Tensor:
    """Central squares of side fraction * min(height, width), int64 [n, 4]; height, width: one size for all, or int64 [n]."""
    height, width = (_on_device(side, device) for side in (height, width))
    side = (torch.minimum(height, width).double() * fraction).round().long().clamp(min=1)
    return torch.stack([(height - side) // 2, (width - side) // 2, side, side], -1).expand(n, 4)


def _column(side: int | Tensor, draws: Draws) -> Tensor:
    """Sides as int64 [N or 1, 1] on the draws' device."""
    return _on_device(side, draws.positions.device).view(-1, 1)


def _on_device(side: int | Tensor, device: torch.device) -> Tensor:
    """The side as a tensor. A number is filled in on the device, since a copy from the host would wait for the device."""
    return side.to(device) if isinstance(side, Tensor) else torch.full((), side, dtype=torch.int64, device=device)
