"""Gaussian blur with one sigma per sample: float [N, C, H, W], edges reflected, as torchvision's gaussian_blur."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this side in pixels one product with the whole [size, size] matrix costs less than many with blocks of the image.
DENSE_SIDE = 64
# Outputs of a block. With radius r a block is a product with a [BLUR_BLOCK, 2 * r + BLUR_BLOCK] matrix, so small blocks waste less.
BLUR_BLOCK = 16


def gaussian_blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each sample with its own sigma [N] (pixels), edges reflected.

    largest: the largest possible sigma; the kernel's radius is four times as large. Matrix products on the CPU; a depthwise
    convolution on other devices and under torch.compile.
    """
    radius = largest_reach(largest)
    height, width = x.shape[2:]
    if not x.is_cpu or torch.compiler.is_compiling():
        return _convolve(x, sigma, radius)
    if radius == 1:
        return _three_taps(x, sigma)
    if min(height, width) <= max(DENSE_SIDE, radius + BLUR_BLOCK):
        rows = blur_matrix(sigma, height, min(radius, height - 1))
        columns = rows if width == height else blur_matrix(sigma, width, min(radius, width - 1))
        return rows[:, None] @ x @ columns.transpose(1, 2)[:, None]
    return _blocks(x, sigma, radius)


def largest_reach(largest: float) -> int:
    """The radius of the kernel in pixels: four sigma, or less where the outer taps would be lost in rounding."""
    # At a distance of 5.9 sigma a tap is below 2^-25 of the middle tap.
    return max(1, min(math.ceil(4.0 * largest), math.ceil(5.9 * largest) - 1))


def taps(sigma: Tensor, radius: int) -> Tensor:
    """The normalised Gaussian at -radius..radius, float32 [N, 2 * radius + 1]."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (offset / sigma[:, None].clamp(min=1e-6)).square())
    return weight / weight.sum(1, keepdim=True)


def blur_matrix(sigma: Tensor, size: int, radius: int) -> Tensor:
    """The blur along one axis as matrices, float32 [N, size, size]: 2 * radius + 1 taps, edges reflected; radius < size."""
    weight = taps(sigma, radius)
    # The product with zeros and ones adds the taps that reflection maps to the same pixel.
    return (weight @ _unfolding(size, radius)).view(len(sigma), size, size)


@lru_cache(maxsize=16)
def _unfolding(size: int, radius: int) -> Tensor:
    """Which tap belongs to which entry of a blur matrix: zeros and ones, float32 [2 * radius + 1, size * size], on the CPU."""
    offset = torch.arange(-radius, radius + 1)
    index = (torch.arange(size)[:, None] + offset[None]).abs()
    index = torch.where(index >= size, 2 * (size - 1) - index, index)
    with torch.inference_mode(False):
        return F.one_hot(index, size).permute(1, 0, 2).reshape(len(offset), -1).float()


def _three_taps(x: Tensor, sigma: Tensor) -> Tensor:
    """Three-tap blur (radius 1) by shifted additions, along both axes."""
    side, middle = taps(sigma, 1)[:, :2, None, None, None].unbind(1)
    x = x.contiguous()
    for axis in (2, 3):
        if x.shape[axis] == 1:
            continue
        beside = torch.empty_like(x)
        if axis == 2:
            torch.add(x[:, :, :-2], x[:, :, 2:], out=beside[:, :, 1:-1])
        else:  # all rows as one long row, which is fast; the wrong values at the rows' ends are overwritten below
            flat = x.flatten(1)
            torch.add(flat[:, :-2], flat[:, 2:], out=beside.flatten(1)[:, 1:-1])
        for edge, inner in ((0, 1), (-1, -2)):
            line = x.select(axis, inner)
            torch.add(line, line, out=beside.select(axis, edge))
        x = (x * middle).add_(beside.mul_(side))
    return x


def _blocks(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur large images one by one, rows before columns: all blocks of outputs share one small Toeplitz matrix."""
    height, width = x.shape[2:]
    # Padded to whole blocks; the padding is cut off at the end.
    below, right = -height % BLUR_BLOCK, -width % BLUR_BLOCK
    reach = 2 * radius + BLUR_BLOCK
    where = torch.arange(reach)[None, :] - torch.arange(BLUR_BLOCK)[:, None]
    inside = (where >= 0) & (where <= 2 * radius)
    matrices = taps(sigma, radius)[:, where.clamp(0, 2 * radius)] * inside  # [N, BLOCK, reach]
    down, across = (height + below) // BLUR_BLOCK, (width + right) // BLUR_BLOCK
    wide = width + right + 2 * radius
    channels = x.shape[1]
    out = torch.empty(x.shape[0], channels, height + below, width + right)
    tall = torch.empty(channels, height + below, wide)
    for picture, matrix, result in zip(x, matrices, out, strict=True):
        padded = F.pad(picture[None], (radius, radius + right, radius, radius + below), mode="reflect")[0]
        for plane, target in zip(padded, tall, strict=True):
            blocks = plane.as_strided((down, reach, wide), (BLUR_BLOCK * wide, wide, 1))
            torch.bmm(matrix.expand(down, -1, -1), blocks, out=target.view(down, BLUR_BLOCK, wide))
        lines = tall.as_strided((across, channels * (height + below), reach), (BLUR_BLOCK, wide, 1))
        columns = torch.bmm(lines, matrix.t().expand(across, -1, -1))
        result.view(-1, across, BLUR_BLOCK).copy_(columns.transpose(0, 1))
    return out[:, :, :height, :width]


def _convolve(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """The blur as a depthwise convolution over N * C channels, in float32 even under autocast; shapes are static."""
    n, channels, height, width = x.shape
    with torch.autocast(x.device.type, enabled=False):
        x = x.reshape(1, n * channels, height, width)
        for axis, side in ((2, height), (3, width)):
            reach = min(radius, side - 1)
            weight = taps(sigma, reach).repeat_interleave(channels, 0)[:, None]
            edges = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
            x = F.conv2d(F.pad(x, edges, mode="reflect"), weight.unsqueeze(5 - axis), groups=n * channels)
    return x.view(n, channels, height, width)
