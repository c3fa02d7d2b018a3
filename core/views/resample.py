"""Antialiased crop, resize and flip in integers: the same bits on every device, for a batch or image by image.

A resized crop is linear and separable, so a batch of crops is two batched matrix products with a matrix for each sample. Matrices
and sums equal aten's uint8 resampling in every bit, which is Pillow's algorithm (ATen/native/cpu/UpSampleKernel.cpp, note
"Weights computation for uint8_t"): float64 weights rounded to 16-bit integers with a common power of two; columns first, rounded
to uint8 and clamped, then rows. So a worker that crops one image by aten and a device that crops a batch give the same view.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..hostmemory import empty

Interpolation = Literal["bilinear", "bicubic"]

# Half the width of a kernel, in pixels of the coarser side.
SUPPORT: dict[Interpolation, float] = {"bilinear": 1.0, "bicubic": 2.0}
# aten's 16-bit weights have at most 22 fraction bits. It has no kernel for 16-bit images, whose weights have 30 here.
MOST_BITS, DEEP_BITS = 22, 30
# On the CPU, matrices are faster than one aten call for each image up to about so many pixels a side.
SMALL = 48
# Samples at a time there, so that results between the two products stay in the cache.
SAMPLES_AT_ONCE = 64
# If an image is resized to more than LONGEST times the cut, only the cut is computed.
LONGEST, MOST_ROWS = 8, 8192
# If more input pixels than this make one output pixel, sums of 8-bit halves of the weights may exceed 2^24.
STEEPEST = 120


def crop_resize(images: Tensor, boxes: Tensor, size: int, kernel: Interpolation, flip: Tensor | None = None) -> Tensor:
    """Crop each image to its box and resize to size x size; uint8 (or uint16) [N, C, H, W] -> the same dtype [N, C, size, size].

    boxes: int64 [N, 4] as top, left, height, width, within the image. flip: bool [N], mirrors left and right. For uint8 it
    equals torchvision's resized_crop(antialias=True), then horizontal_flip, in every bit. Nothing waits for the device.
    """
    if _by_aten(images):
        small = max(size, *images.shape[2:]) <= SMALL
        return (_crop_small if small else crop_resize_each)(images, boxes, size, kernel, flip)
    top, left, height, width = boxes.unbind(1)
    rows = resize_matrix(top, height, images.shape[2], size, kernel, _most_bits(images))
    columns = resize_matrix(left, width, images.shape[3], size, kernel, _most_bits(images), flip)
    return _resample(images, rows, columns)


def crop_resize_each(
    pictures: Sequence[Tensor] | Tensor,
    boxes: Tensor,
    size: int,
    kernel: Interpolation,
    flip: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`crop_resize` of images [C, H_i, W_i] of one dtype and any sizes, on the CPU: the same bits, [N, C, size, size].

    Fastest if the channels of a pixel are adjacent in memory, as decoders write them. out: where to write the result.
    """
    mirrored = [False] * len(pictures) if flip is None else flip.tolist()
    found = empty(len(pictures), pictures[0].shape[0], size, size, dtype=pictures[0].dtype) if out is None else out
    for one, picture, (top, left, height, width), mirror in zip(found, pictures, boxes.tolist(), mirrored, strict=True):
        crop = resize(picture[None, :, top : top + height, left : left + width], (size, size), kernel)[0]
        one.copy_(crop.flip(2) if mirror else crop)
    return found


def resize_centre(images: Tensor, short: int, size: int, kernel: Interpolation) -> Tensor:
    """Resize the shorter side to `short`, then cut the central size x size; [N, C, H, W] -> the same dtype [N, C, size, size].

    For uint8 it equals torchvision's resize(antialias=True) and center_crop in every bit. An image that already has the size is
    returned unchanged. For long strips only the rows and columns of the cut are computed.
    """
    height, width = images.shape[2:]
    resized, (top, left) = centre_cut(height, width, short, size)
    if (height, width) == resized == (size, size):
        return images
    if max(resized) > LONGEST * size:
        return _cut_of_resized(images, resized, (top, left), (size, size), kernel)
    return resize(images, resized, kernel)[:, :, top : top + size, left : left + size].contiguous()


def centre_cut(height: int, width: int, short: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The sides of a picture whose shorter side is resized to `short`, and the top and left of its central size x size."""
    resized = int(short * height / min(height, width)), int(short * width / min(height, width))
    return resized, (round((resized[0] - size) / 2), round((resized[1] - size) / 2))


def resize(images: Tensor, size: tuple[int, int], kernel: Interpolation) -> Tensor:
    """Antialiased resizing, [N, C, H, W] -> [N, C, *size], the same dtype; uint8: torchvision's bits."""
    # At a width of one pixel aten confuses planar and interleaved channels, or fails an assertion.
    if not _by_aten(images) or size[1] == 1:
        return _cut_of_resized(images, size, (0, 0), size, kernel)
    op: Any = torch.ops.aten._upsample_bilinear2d_aa if kernel == "bilinear" else torch.ops.aten._upsample_bicubic2d_aa
    return op(images, size, False, None, None)


def _cut_of_resized(
    images: Tensor, resized: tuple[int, int], first: tuple[int, int], kept: tuple[int, int], kernel: Interpolation
) -> Tensor:
    """Resize to `resized`, but compute only `kept` rows and columns starting at `first`; on any device."""
    rows, columns = (
        _whole_matrix(side, out, start, count, kernel, _most_bits(images))
        for side, out, start, count in zip(images.shape[2:], resized, first, kept, strict=True)
    )
    device = images.device
    rows, columns = (
        (torch.from_numpy(dense).to(device)[None], torch.full((1,), bits, device=device))
        for dense, bits in (rows, columns)
    )
    return _resample(images, rows, columns)


def resize_matrix(
    start: Tensor,
    length: Tensor,
    size_in: int,
    size_out: int,
    kernel: Interpolation,
    most_bits: int = MOST_BITS,
    flip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights that resample [start, start + length) to size_out: integers as float64 [N, size_out, size_in], and bits, int64 [N].

    start, length: int64 [N]. An output is the sum over size_in of weight times pixel, plus 2^(bits - 1), shifted right by bits.
    The kernel (bilinear, or bicubic with a = -0.5) is stretched by the scale when shrinking; weights outside the crop are dropped
    before normalising. Coordinates are relative to the crop, so the weights are those of a crop that was cut out first.
    """
    scale = (length.double() / size_out)[:, None, None]
    column = (torch.arange(size_in, device=start.device) - start[:, None])[:, None]
    inside = (column >= 0) & (column < length[:, None, None])
    row = torch.arange(size_out, device=start.device, dtype=torch.float64)[None, :, None]
    x = column.double() + 0.5 - (row + 0.5) * scale
    x = x.mul_(1.0 / scale.clamp(min=1.0)).abs_()
    # Arithmetic instead of torch.where, which is ten times slower on the CPU.
    if kernel == "bilinear":
        weight = (1.0 - x).clamp_(min=0.0)
    else:
        near, far = (
            x.clamp(max=1.0),
            x.clamp(1.0, 2.0),
        )  # each polynomial is zero at the end of its range, so only one of the two counts
        weight = ((1.5 * near - 2.5) * near).mul_(near).add_(1.0)
        weight += ((-0.5 * far + 2.5) * far - 4.0).mul_(far).add_(2.0)
    weight = weight.mul_(inside)
    weight /= weight.sum(-1, keepdim=True)
    largest = weight.amax((1, 2))
    if most_bits == MOST_BITS:
        powers = 2.0 ** torch.arange(1, MOST_BITS + 1, device=start.device, dtype=torch.float64)
        bits = ((largest[:, None] * powers + 0.5).floor() < 2**15).sum(1)
    else:
        bits = torch.full_like(length, most_bits)
    # Round half away from zero.
    weight = weight.mul_(torch.exp2(bits.double())[:, None, None])
    weight = (weight + 0.5 * weight.sign()).trunc_()
    if flip is not None:
        flipped = flip.double()[:, None, None]
        weight = weight + flipped * (weight.flip(1) - weight)
    return weight, bits


@functools.lru_cache(maxsize=64)
def _whole_matrix(
    size_in: int, resized: int, first: int, kept: int, kernel: Interpolation, most_bits: int
) -> tuple[np.ndarray, int]:
    """Rows first to first + kept of the `resize_matrix` that resizes a whole side, float64 [kept, size_in], and its bits.

    Only weights within the kernel are computed. The number of bits depends on the first MOST_ROWS rows.
    """
    scale = size_in / resized
    stretch = max(scale, 1.0)
    row = np.concatenate([np.arange(first, first + kept), np.arange(min(resized, MOST_ROWS))])
    centre = (row + 0.5) * scale
    reach = SUPPORT[kernel] * stretch
    column = np.floor(centre - reach)[:, None] + np.arange(2 * math.ceil(reach) + 2)
    x = np.abs(column + 0.5 - centre[:, None]) * (1.0 / stretch)
    if kernel == "bilinear":
        weight = np.maximum(1.0 - x, 0.0)
    else:
        far = np.where(x < 2, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0, 0.0)
        weight = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1.0, far)
    weight *= (column >= 0) & (column < size_in)
    weight /= weight.sum(1, keepdims=True)
    bits = most_bits
    if most_bits == MOST_BITS:
        largest = weight.max()
        bits = sum(math.floor(largest * 2.0**power + 0.5) < 2**15 for power in range(1, MOST_BITS + 1))
    weight = np.trunc(weight * 2.0**bits + np.copysign(0.5, weight))
    dense = np.zeros((kept, size_in))
    for out, columns, values in zip(dense, column[:kept], weight[:kept], strict=True):
        inside = (columns >= 0) & (columns < size_in)
        out[columns[inside].astype(np.int64)] = values[inside]
    return dense, bits


def _crop_small(images: Tensor, boxes: Tensor, size: int, kernel: Interpolation, flip: Tensor | None) -> Tensor:
    """`crop_resize` of small uint8 images on the CPU by tables of all matrices: a third of the time of one aten call for each image."""
    top, left, height, width = boxes.unbind(1)
    # If no crop shrinks, weights have at most 15 bits and sums stay below 2^24, exact in float32 unless products are less precise.
    exact = max(images.shape[2:]) <= size and torch.get_float32_matmul_precision() == "highest"
    dtype = torch.float32 if exact else torch.float64
    in_height, in_width = images.shape[2:]
    rows = _table(in_height, size, kernel, dtype)
    columns = _table(in_width, size, kernel, dtype)
    row, column = _table_index(top, height, in_height), _table_index(left, width, in_width)
    if flip is not None:
        column = column + flip * (len(columns) // 2)
    found = empty(len(images), images.shape[1], size, size, dtype=images.dtype)
    for start in range(0, len(images), SAMPLES_AT_ONCE):
        part = slice(start, start + SAMPLES_AT_ONCE)
        found[part] = _resample(
            images[part], (rows.index_select(0, row[part]), None), (columns.index_select(0, column[part]), None)
        )
    return found


@functools.lru_cache(maxsize=16)
def _table(side: int, size: int, kernel: Interpolation, dtype: torch.dtype) -> Tensor:
    """`resize_matrix`, prepared, of every (start, length) within a side, then of each flipped; 4 MB at 32 px."""
    pairs = torch.tensor([(start, length) for length in range(1, side + 1) for start in range(side - length + 1)])
    weights = _prepared(*resize_matrix(pairs[:, 0], pairs[:, 1], side, size, kernel), dtype)
    return torch.cat([weights, weights.flip(1)])


def _table_index(start: Tensor, length: Tensor, side: int) -> Tensor:
    shorter = length - 1
    return shorter * (side + 1) - shorter * length // 2 + start


def _most_bits(images: Tensor) -> int:
    return MOST_BITS if images.dtype == torch.uint8 else DEEP_BITS


def _by_aten(images: Tensor) -> bool:
    """Whether aten's kernel can be called: it needs uint8 on the CPU, and compiled graphs use matrices."""
    return images.is_cpu and images.dtype == torch.uint8 and not torch.compiler.is_compiling()


def _resample(images: Tensor, rows: tuple[Tensor, Tensor | None], columns: tuple[Tensor, Tensor | None]) -> Tensor:
    """Resample columns, then rows, by the weights [N or 1, size, H or W] and bits [N or 1] of `resize_matrix`."""
    n, channels, height, width = images.shape
    (out_height, out_width), top = (rows[0].shape[1], columns[0].shape[1]), torch.iinfo(images.dtype).max
    # Rows come before channels, so that each pass is one product for all channels of a sample.
    x = images.permute(0, 2, 1, 3).reshape(n, height * channels, width)
    x = _weighted(x, *columns, images.dtype, from_right=True).clamp_(0, top)
    x = _weighted(x.view(n, height, channels * out_width), *rows, images.dtype, from_right=False).clamp_(0, top)
    x = x.view(n, out_height, channels, out_width).permute(0, 2, 1, 3)
    return x.to(images.dtype, memory_format=torch.contiguous_format)


def _weighted(x: Tensor, weights: Tensor, bits: Tensor | None, depth: torch.dtype, *, from_right: bool) -> Tensor:
    """(weights @ x + half) >> bits, or (x @ weights^T + half) >> bits, in floats that hold integers; x [N, ., .].

    Exact in any order of summation, so equal on every device. bits None: the weights come from `_prepared`. Autocast is off,
    since it would round the result.
    """
    with torch.autocast(x.device.type, enabled=False):
        if bits is None:
            return _product(x.to(weights.dtype), weights, from_right).add_(0.5).floor_()
        if depth == torch.uint8 and not x.is_cpu and weights.shape[2] <= STEEPEST * weights.shape[1]:
            return _weighted_in_halves(x.float(), weights, bits, from_right)
        return _product(x.double(), _prepared(weights, bits, torch.float64), from_right).add_(0.5).floor_()


def _weighted_in_halves(x: Tensor, weights: Tensor, bits: Tensor, from_right: bool) -> Tensor:
    """`_weighted` for accelerators, where float64 is slow: 16-bit weights in halves of 8 bits.

    Halves and 8-bit pixels are exact even in TF32 and bfloat16, and their float32 sums stay below 2^24, so no precision setting
    changes a bit. The halves are added in integers, as aten adds everything.
    """
    high = (weights * 2.0**-8).round_()
    halves = torch.cat([high, weights - high * 2.0**8], 1).float()
    high, low = _product(x, halves, from_right).int().chunk(2, 2 if from_right else 1)
    shift = bits.int()[:, None, None]
    return (high * 2**8 + low + 2 ** (shift - 1)) >> shift


def _prepared(weights: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights times 2^-bits, so that sums need no shift; still exact, below 2^53 units in float64 and 2^24 in float32."""
    return (weights * torch.exp2(-bits.double())[:, None, None]).to(dtype)


def _product(x: Tensor, weights: Tensor, from_right: bool) -> Tensor:
    return x @ weights.transpose(1, 2) if from_right else weights @ x
