"""Photometric operations with one set of parameters per sample: float [N, 3, H, W] in 0..1, formulas as in torchvision's v2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .draws import Draws

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def grayscale(x: Tensor) -> Tensor:
    """ITU-R 601 luma in all three channels."""
    luma = 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    return luma.expand_as(x)


def shift_hue(x: Tensor, amount: Tensor) -> Tensor:
    """Rotate the hue by `amount` turns, [N]: RGB -> HSV, shift, -> RGB."""
    red, green, blue = x.unbind(1)
    top, bottom = x.amax(1), x.amin(1)
    span = top - bottom
    saturation = span / torch.where(top == 0, 1.0, top)
    divisor = torch.where(span == 0, 1.0, span)
    r, g, b = (top - red) / divisor, (top - green) / divisor, (top - blue) / divisor
    hue = torch.where(top == red, b - g, torch.where(top == green, 2.0 + r - b, 4.0 + g - r))
    hue = torch.remainder(hue / 6.0 + 1.0 + amount[:, None, None], 1.0)
    # HSV -> RGB in closed form: channel = v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6 with n = 5, 3, 1.
    k = torch.remainder(torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1) + 6.0 * hue[:, None], 6.0)
    return top[:, None] - (top * saturation)[:, None] * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def colour_jitter(x: Tensor, draws: Draws, strength: tuple[float, float, float, float], p: float) -> Tensor:
    """ColorJitter with probability p: brightness, contrast, saturation and hue in an order drawn per sample."""
    chosen = draws.bernoulli("p", p)
    order = draws.permutation("order", 4)
    factor = draws.uniform("factor", 4)
    limits = torch.tensor(
        [[max(0.0, 1.0 - s), 1.0 + s] for s in strength[:3]] + [[-strength[3], strength[3]]], device=x.device
    )
    factor = limits[:, 0] + (limits[:, 1] - limits[:, 0]) * factor
    # On the CPU only the chosen samples are touched; elsewhere shapes stay static, so that nothing waits for the device.
    rows = chosen.nonzero()[:, 0] if x.is_cpu else None
    work = x if rows is None else x[rows]
    if rows is not None:
        order, factor = order[rows], factor[rows]
    for turn in range(4):
        work = _one_turn(work, order[:, turn], factor, any_hue=strength[HUE] > 0)
    if rows is not None:
        return x.index_copy(0, rows, work)
    return torch.where(chosen[:, None, None, None], work, x)


def _one_turn(x: Tensor, operation: Tensor, factor: Tensor, any_hue: bool) -> Tensor:
    """Each sample's own operation of this turn: the first three blend with black, with the mean gray or with the gray image."""
    gray = grayscale(x)
    op = operation[:, None, None, None]
    reference = torch.where(
        op == CONTRAST, gray.mean((1, 2, 3), keepdim=True), torch.where(op == SATURATION, gray, 0.0)
    )
    ratio = factor.gather(1, operation[:, None])[:, :, None, None]
    blended = (ratio * x + (1.0 - ratio) * reference).clamp(0.0, 1.0)
    if not any_hue:
        return torch.where(op == HUE, x, blended)
    if not x.is_cpu:
        return torch.where(op == HUE, shift_hue(x, factor[:, HUE]), blended)
    rows = (operation == HUE).nonzero()[:, 0]
    return blended.index_copy(0, rows, shift_hue(x[rows], factor[rows, HUE]))


def gaussian_blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each sample by its own sigma [N] (pixels), reflecting at the edges; kernels reach four of the largest sigma."""
    radius = max(1, math.ceil(4.0 * largest))
    rows = blur_matrix(sigma, x.shape[2], min(radius, x.shape[2] - 1))
    columns = blur_matrix(sigma, x.shape[3], min(radius, x.shape[3] - 1))
    return rows[:, None] @ x @ columns.transpose(1, 2)[:, None]


def blur_matrix(sigma: Tensor, size: int, radius: int) -> Tensor:
    """The normalised Gaussian of 2 * radius + 1 taps as matrices, float32 [N, size, size], with reflected edges."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (offset / sigma[:, None].clamp(min=1e-6)).square())
    weight = weight / weight.sum(1, keepdim=True)
    index = (torch.arange(size, device=sigma.device)[:, None] + offset[None]).abs()
    index = torch.where(index >= size, 2 * (size - 1) - index, index)
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    return matrix.scatter_add_(2, index.expand(len(sigma), -1, -1), weight[:, None].expand(-1, size, -1))
