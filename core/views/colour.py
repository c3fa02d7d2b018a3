"""Colour operations with one set of parameters per sample: float [N, 3, H, W] in 0..1, formulas as in torchvision's v2.

The same formulas run in two ways. Eagerly on the CPU, an operation changes only the samples that it was drawn for, in place, in
slices that fit the cache, and without torch.where and torch.remainder, which cost as much as twenty other operations there.
On other devices and under torch.compile, shapes are static: every sample passes every operation, with no effect where it was
not drawn, so that nothing waits for the device.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import cycle, pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..draws import Draws
from ..numerics import eager_cpu
from .blur import gaussian_blur

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
Strength = tuple[float, float, float, float]
# Floats of the samples in a slice, so that they and the temporaries of an operation stay in a core's cache.
CACHED_FLOATS = 1 << 20
# Floats of the samples that one operation copies out at a time.
SLICE = 1 << 18
# Samples with more floats than this are processed one at a time.
LARGE = 1 << 16
TINY, FAR = 1e-30, 2.0**40
FIELD = 4  # points of a field of colours along each side


class Colours(NamedTuple):
    """The drawn parameters of N samples; None for an operation that is off."""

    jitter: Tensor | None = None  # bool [N]
    order: Tensor | None = None  # int64 [N, 4]: the operation of each turn
    factor: Tensor | None = None  # float [N, 4]: brightness, contrast, saturation; hue in turns
    gray: Tensor | None = None  # bool [N], like blur, solarize and invert
    blur: Tensor | None = None
    sigma: Tensor | None = None  # float [N], pixels
    solarize: Tensor | None = None
    invert: Tensor | None = None
    difference: Tensor | None = None
    field: Tensor | None = None  # float [N, 3, FIELD, FIELD]

    def rows(self, rows: slice) -> Colours:
        return Colours(*(None if field is None else field[rows] for field in self))


def draw_jitter(draws: Draws, strength: Strength, p: float) -> Colours:
    """ColorJitter's parameters: with probability p, four factors and the order of the four operations."""
    limits = [(max(0.0, 1.0 - s), 1.0 + s) for s in strength[:3]] + [(-strength[3], strength[3])]
    low, high = (constant(bound, draws.positions.device) for bound in zip(*limits, strict=True))
    factor = low + (high - low) * draws.uniform("factor", 4)
    return Colours(draws.bernoulli("p", p), draws.permutation("order", 4), factor)


def recolour(x: Tensor, colours: Colours, largest_sigma: float) -> Tensor:
    """Difference, colour jitter, grayscale, blur, solarize and invert, in this order; may overwrite x (values in 0..1)."""
    if not eager_cpu(x):
        return _recolour_all(x, colours, largest_sigma)
    if colours.difference is not None and colours.field is not None:
        field = colours.field
        _on(x, colours.difference, lambda part, rows: field_difference(part, field[rows]))
    if colours.jitter is not None:
        _jitter_some(x, colours)
    if colours.gray is not None:
        _on(x, colours.gray, lambda part, _: luma(part))
    if colours.blur is not None and colours.sigma is not None:
        sigma = colours.sigma
        _on(x, colours.blur, lambda part, rows: gaussian_blur(part, sigma[rows], largest_sigma))
    if colours.solarize is not None:
        _on(x, colours.solarize, lambda part, _: solarize(part))
    if colours.invert is not None:
        _on(x, colours.invert, lambda part, _: part.neg_().add_(*scalars((1.0,), part)))
    return x


def _recolour_all(x: Tensor, colours: Colours, largest_sigma: float) -> Tensor:
    if colours.difference is not None and colours.field is not None:
        x = torch.where(_column(colours.difference), field_difference(x, colours.field), x)
    if colours.jitter is not None:
        x = _jitter_all(x, colours)
    if colours.gray is not None:
        x = torch.where(_column(colours.gray), luma(x), x)
    if colours.blur is not None and colours.sigma is not None:
        x = torch.where(_column(colours.blur), gaussian_blur(x, colours.sigma, largest_sigma), x)
    if colours.solarize is not None:
        x = torch.where(_column(colours.solarize), solarize(x), x)
    if colours.invert is not None:
        x = torch.where(_column(colours.invert), 1.0 - x, x)
    return x


def colour_jitter(x: Tensor, draws: Draws, strength: Strength, p: float) -> Tensor:
    """ColorJitter with probability p: brightness, contrast, saturation and hue in an order drawn per sample."""
    return recolour(x.clone(), draw_jitter(draws, strength, p), 0.0)


def grayscale(x: Tensor) -> Tensor:
    """ITU-R 601 luma in all three channels."""
    return luma(x).expand_as(x)


def luma(x: Tensor) -> Tensor:
    """ITU-R 601 luma, [N, 1, H, W]."""
    red, green, blue = x.unbind(1)
    r, g, b = scalars((0.2989, 0.587, 0.114), x)
    return (red * r).add_(green * g).add_(blue * b).unsqueeze(1)


def solarize(x: Tensor) -> Tensor:
    """Invert values of 0.5 and more; for exactly these 1 - x is the smaller of the two."""
    (one,) = scalars((1.0,), x)
    return torch.minimum(x, one - x)


def field_difference(x: Tensor, field: Tensor) -> Tensor:
    """|x - c| for a field of colours, [N, 3, FIELD, FIELD]: its corners are the image's, and it is bilinear between its points."""
    smooth = F.interpolate(field, size=x.shape[2:], mode="bilinear", align_corners=True)
    return (x - smooth).abs()


def brighten(x: Tensor, factor: Tensor) -> Tensor:
    """Brightness. factor: [N, 1, 1, 1]. Overwrites x, as the next three functions do."""
    return x.mul_(factor).clamp_(0.0, 1.0)


def blend_mean(x: Tensor, factor: Tensor) -> Tensor:
    """Contrast: blend with the mean gray of each image."""
    # The mean over three equal channels, as torchvision takes it: their sum is rounded once more.
    one, three, count = scalars((1.0, 3.0, 3.0 * x.shape[2] * x.shape[3]), x)
    mean = luma(x).sum((1, 2, 3), keepdim=True).mul_(three).div_(count)
    return x.mul_(factor).add_(mean.mul_(one - factor)).clamp_(0.0, 1.0)


def blend_gray(x: Tensor, factor: Tensor) -> Tensor:
    """Saturation: blend with the gray image."""
    (one,) = scalars((1.0,), x)
    gray = luma(x).mul_(one - factor)
    return x.mul_(factor).add_(gray).clamp_(0.0, 1.0)


def shift_hue(x: Tensor, amount: Tensor) -> Tensor:
    """Shift the hue by `amount` [N, 1, 1, 1], a part of a full turn and at least -0.8: RGB -> HSV, shift, -> RGB."""
    one, two, four, six = scalars((1.0, 2.0, 4.0, 6.0), x)
    red, green, blue = x.unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    # Negative everywhere, which saves a pass at the end. Where a divisor is 0, its dividend is 0 too.
    fall = torch.minimum(torch.minimum(red, green), blue).sub_(top)
    value = top.unsqueeze(1)
    away = (x - value).div_(fall.clamp_max(-TINY).unsqueeze(1))
    r, g, b = away.unbind(1)
    # b - g where red is the largest, else 2 + r - b where green is, else 4 + g - r. The candidates of smaller channels are raised by
    # a huge number, so that the minimum picks the right one; in a tie it picks the first. The difference from the largest channel
    # is either 0 or at least 2^-24 of it.
    hue = (g + four).sub_(r)
    hue = torch.minimum(hue, (r + two).sub_(b).add_(g, alpha=FAR))
    hue = torch.minimum(hue, (b - g).add_(r, alpha=FAR))
    sextant = hue.div_(six).add_(one).add_(amount[:, 0]).frac_().mul_(six)
    # HSV -> RGB: channel = v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6 with n = 5, 3, 1. Unrolled, the last
    # factor is | n + 6 h - 5 | - 1 for n = 3 and 1, and 1 - (| n + 6 h - 8 | - 1) for n = 5, cut off at 0 and 1.
    ahead, back = constant((5.0, 3.0, 1.0), x.device, 1), constant((8.0, 5.0, 5.0), x.device, 1)
    weight = (sextant.unsqueeze(1) + ahead).sub_(back)
    weight.abs_().sub_(one)
    weight.select(1, 0).neg_().add_(one)
    chroma = fall.div_(top.clamp_min(TINY)).mul_(top)
    return torch.add(weight.clamp_(0.0, 1.0).mul_(chroma.unsqueeze(1)), value, out=x)


JITTER_OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brighten, blend_mean, blend_gray, shift_hue)


def _jitter_some(x: Tensor, colours: Colours) -> None:
    """Jitter the drawn samples in place. In each turn they are sorted by their operation, so that each operation gets one slice."""
    assert colours.jitter is not None and colours.order is not None and colours.factor is not None
    rows = np.flatnonzero(colours.jitter.numpy())
    if not len(rows):
        return
    order, factor = colours.order.numpy()[rows], colours.factor.numpy()[rows]
    idle = (factor == (1.0, 1.0, 1.0, 0.0)).all(0)
    alone = len(x) == 1
    now, buffers = x, cycle(() if alone else _SPARE.two(len(rows), x))
    for turn in range(4):
        if not alone:
            by = order[:, turn].argsort(kind="stable")
            order, factor, rows = order[by], factor[by], rows[by]
            now = torch.index_select(now, 0, torch.from_numpy(by if turn else rows), out=next(buffers))
        ends = np.searchsorted(order[:, turn], range(5)).tolist()
        for operation, (start, stop) in enumerate(pairwise(ends)):
            if start < stop and not idle[operation]:
                numbers = torch.from_numpy(factor[start:stop, operation, None, None, None])
                JITTER_OPERATIONS[operation](now[start:stop], numbers)
    if not alone:
        x.numpy()[rows] = now.numpy()


class _Spare(threading.local):
    """Memory for two copies of the samples, kept between calls: fresh memory costs more than the operations on it."""

    flat: Tensor = torch.empty(0)

    def two(self, count: int, x: Tensor) -> tuple[Tensor, ...]:
        """Two tensors [count, C, H, W]; the next call overwrites them."""
        floats = count * x[0].numel()
        flat = self.flat
        if len(flat) < 2 * floats:
            with torch.inference_mode(False):
                flat = torch.empty(2 * floats)
            if floats <= CACHED_FLOATS:
                self.flat = flat
        return tuple(flat[k * floats : (k + 1) * floats].view(count, *x.shape[1:]) for k in range(2))


_SPARE = _Spare()


def _jitter_all(x: Tensor, colours: Colours) -> Tensor:
    """Jitter with static shapes: four turns, in each of which every sample has its own operation."""
    assert colours.jitter is not None and colours.order is not None and colours.factor is not None
    # Brightness by 1 changes nothing.
    order = torch.where(colours.jitter[:, None], colours.order, BRIGHTNESS)
    factor = torch.where(colours.jitter[:, None], colours.factor.gather(1, colours.order), 1.0)
    for turn in range(4):
        x = jitter_turn(x, order[:, turn], factor[:, turn])
    return x


def jitter_turn(x: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Apply to every sample its own operation, int64 [N], with its own factor [N], as one graph of fixed size for torch.compile."""
    gray = luma(x)
    other = torch.where(_column(operation == SATURATION), gray, 0.0)
    other = torch.where(_column(operation == CONTRAST), gray.mean((1, 2, 3), keepdim=True), other)
    turns = operation == HUE
    own = _column(torch.where(turns, 1.0, factor))
    blended = (x * own + other * (1.0 - own)).clamp(0.0, 1.0)
    return torch.where(_column(turns), shift_hue(x.clone(), _column(torch.where(turns, factor, 0.0))), blended)


def cache_slices(x: Tensor) -> Iterable[slice]:
    """Slices of the batch that fit the CPU's cache, of nearly equal length: a short one needs as many calls as a long one."""
    floats = x[0].numel() if len(x) else 1
    most = 1 if floats > LARGE else max(1, CACHED_FLOATS // floats)
    step = max(1, math.ceil(len(x) / max(1, math.ceil(len(x) / most))))
    return (slice(start, start + step) for start in range(0, len(x), step))


def scalars(numbers: tuple[float, ...], x: Tensor) -> Sequence[Tensor | float]:
    """Numbers for arithmetic with x: as tensors on the CPU, where converting a number takes longer than the operation."""
    return _kept_apart(numbers) if eager_cpu(x) else numbers


def constant(numbers: tuple[float, ...], device: torch.device, trailing: int = 0) -> Tensor:
    """Numbers as a tensor [K], or [1, K, 1, 1] with `trailing`; made once per device."""
    made = torch.tensor(numbers, device=device) if torch.compiler.is_compiling() else _kept(numbers, device)
    return made.view(1, -1, 1, 1) if trailing else made


@lru_cache(maxsize=64)
def _kept(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Made once, since a copy to a device waits for the device."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)


@lru_cache(maxsize=64)
def _kept_apart(numbers: tuple[float, ...]) -> tuple[Tensor, ...]:
    return _kept(numbers, torch.device("cpu")).unbind()


def _on(x: Tensor, flag: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Overwrite the flagged samples with apply(copies of some, their rows); the result may have one channel."""
    rows = np.flatnonzero(flag.numpy())
    if len(x) == 1:
        if len(rows) and (made := apply(x, torch.from_numpy(rows))) is not x:
            x.copy_(made)
        return
    for some in np.array_split(rows, math.ceil(len(rows) * x[0].numel() / SLICE)) if len(rows) else ():
        index = torch.from_numpy(some)
        # numpy copies whole rows; index_copy_ takes six times as long.
        x.numpy()[some] = apply(x.index_select(0, index), index).numpy()


def _column(flag: Tensor) -> Tensor:
    return flag[:, None, None, None]
