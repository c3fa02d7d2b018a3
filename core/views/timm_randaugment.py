"""timm's RandAugment, batched: its fifteen operations with its magnitudes, on draws of ours that are keyed by position.

It differs from torchvision's (randaugment.py): an operation is applied with probability p, its magnitude is normal about m and clipped,
Invert and SolarizeAdd are among the operations and Identity is not, and pixels move by a filter, with the mean colour from outside. Levels
are those that Pillow gives, from which timm makes its operations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from .pillow_warp import warp
from .randaugment import CACHED_LEVELS, equalized, level_counts, looked_up
from .resample import Interpolation

TIMM_OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness",
    "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
AUTOCONTRAST, EQUALIZE, INVERT, ROTATE, POSTERIZE, SOLARIZE, SOLARIZE_ADD, COLOR, CONTRAST, BRIGHTNESS = range(10)
SHARPNESS, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, NOTHING = range(10, 16)
LEVELS = 10.0  # timm's whole scale of magnitudes
UNIFORM_FROM = 100.0  # a spread above it means magnitudes uniform from 0 to m


class TimmRandAugment(NamedTuple):
    """What a string such as rand-m9-mstd0.5-inc1 says."""

    magnitude: float = LEVELS
    spread: float = 0.0
    largest: float = LEVELS
    operations: int = 2
    p: float = 0.5
    increasing: bool = False

    @staticmethod
    def parse(text: str) -> TimmRandAugment:
        """Raises UserError for what is no such string, and for timm's sets of weighted operations."""
        kind, *parts = text.split("-")
        found: dict[str, float] = {}
        for part in parts:
            match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?)", part)
            if match is None or match[1] in found:
                kind = ""
                break
            found[match[1]] = float(match[2])
        whole = all(found.get(key, 0.0).is_integer() for key in ("m", "mmax", "n", "inc"))
        if kind != "rand" or not whole or found.get("p", 0.5) > 1.0 or not found.get("n", 2) <= UNIFORM_FROM:
            raise UserError(
                f"data.views.timm_randaugment: {text!r} is given; expected timm's string for RandAugment, such as rand-m9-mstd0.5-inc1, of "
                "the parts m (magnitude), mstd, mmax, n, p and inc"
            )
        largest = found.get("mmax") or LEVELS
        return TimmRandAugment(
            found.get("m", LEVELS),
            found.get("mstd", 0.0),
            largest,
            int(found.get("n", 2)),
            found.get("p", 0.5),
            bool(found.get("inc", 0)),
        )


class Operations(NamedTuple):
    """An operation for each image. kind: int64 [N] into TIMM_OPERATIONS, or NOTHING. level: float64 [N], 0 to 10. sign: [N], +1 or -1."""

    kind: Tensor
    level: Tensor
    sign: Tensor
    increasing: bool
    fill: tuple[int, ...]  # levels of a pixel from outside, one a channel (repeated)
    interpolation: Interpolation

    def rows(self, rows: Tensor) -> Operations:
        return self._replace(kind=self.kind[rows], level=self.level[rows], sign=self.sign[rows])


def timm_rand_augment(
    x: Tensor, draws: Draws, settings: TimmRandAugment, mean: tuple[float, ...], interpolation: Interpolation
) -> Tensor:
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719) as timm has it; uint8 [N, C, H, W] -> the same.

    mean: of the normalisation, in 0..1, the colour from outside. Color has no effect on images without three channels. Raises UserError for
    images that are not 8-bit.
    """
    if x.dtype != torch.uint8:
        raise UserError(
            f"data.views.timm_randaugment: works on 8-bit pictures, but these are {x.dtype}; leave it out (also in data.strong)"
        )
    fill = tuple(min(255, round(255 * value)) for value in mean)
    for turn in range(settings.operations):
        kind = draws.integers(f"operation{turn}", len(TIMM_OPERATIONS))
        kind = torch.where(draws.bernoulli(f"applied{turn}", settings.p), kind, NOTHING)
        sign = 1.0 - 2.0 * draws.bernoulli(f"sign{turn}", 0.5).double()
        if settings.spread > UNIFORM_FROM:
            level = draws.uniform(f"level{turn}").double() * settings.magnitude
        elif settings.spread:
            level = settings.magnitude + settings.spread * draws.normal(f"level{turn}").double()
        else:
            level = torch.full_like(sign, settings.magnitude)
        level = level.clamp(0.0, settings.largest)
        x = operate(x, Operations(kind, level, sign, settings.increasing, fill, interpolation))
    return x


def operate(x: Tensor, operations: Operations) -> Tensor:
    """Apply to each image its own operation; uint8 [N, C, H, W] -> the same."""
    if not x.is_cpu or torch.compiler.is_compiling():
        # Static shapes, as in randaugment.augment.
        for step, _ in TIMM_STEPS:
            x = step(x, operations)
        return x
    x, kinds = x.clone(), operations.kind.tolist()
    few = max(1, CACHED_LEVELS // x[0].numel())
    for step, members in TIMM_STEPS:
        chosen = [n for n, kind in enumerate(kinds) if kind in members]
        for first in range(0, len(chosen), few):
            rows = torch.tensor(chosen[first : first + few])
            x[rows] = step(x[rows], operations.rows(rows))
    return x


def _move(x: Tensor, given: Operations) -> Tensor:
    """Shear about the corner, translate by a part of the side, or rotate about the centre."""
    height, width = x.shape[2:]
    part = given.level / LEVELS * given.sign
    zero, one = torch.zeros_like(part), torch.ones_like(part)
    angle = -part * 30.0 * (math.pi / 180.0)
    cosine, sine = angle.cos(), angle.sin()
    across, down = width / 2.0, height / 2.0
    rows = {
        ROTATE: (
            cosine, sine, across - cosine * across - sine * down, -sine, cosine, down + sine * across - cosine * down,
        ),
        SHEAR_X: (one, 0.3 * part, zero, zero, one, zero),
        SHEAR_Y: (one, zero, zero, 0.3 * part, one, zero),
        TRANSLATE_X: (one, zero, 0.45 * part * width, zero, one, zero),
        TRANSLATE_Y: (one, zero, zero, zero, one, 0.45 * part * height),
    }  # fmt: skip
    matrix = torch.stack([one, zero, zero, zero, one, zero], 1)
    for kind, row in rows.items():
        matrix = torch.where((given.kind == kind)[:, None], torch.stack(row, 1), matrix)
    return warp(x, matrix, given.fill, given.interpolation)


def _map_levels(x: Tensor, given: Operations) -> Tensor:
    """What maps levels whatever the picture's histogram is, as tables [N, 1, 256]; contrast needs the mean alone."""
    levels = torch.arange(256, device=x.device)
    part, factor = given.level / LEVELS, _factor(given)[:, None, None]
    mean = (gray_levels(x).double().mean((1, 2, 3)) + 0.5).floor().float()[:, None, None]
    kept = (part * 4).long()
    kept = 4 - kept if given.increasing else kept
    shift = (8 - kept)[:, None, None]
    threshold = (part * 256).long().clamp(max=256)
    threshold = (256 - threshold if given.increasing else threshold)[:, None, None]
    more = (part * 110).long().clamp(max=128)[:, None, None]
    mapped = {
        INVERT: 255 - levels,
        POSTERIZE: levels >> shift << shift,
        SOLARIZE: torch.where(levels < threshold, levels, 255 - levels),
        SOLARIZE_ADD: torch.where(levels < 128, (levels + more).clamp(max=255), levels),
        BRIGHTNESS: _blend(torch.zeros_like(levels), levels, factor).long(),
        CONTRAST: _blend(mean, levels, factor).long(),
    }
    return looked_up(x.flatten(2).long(), mapped, given.kind).view_as(x)


def _map_histogram(x: Tensor, given: Operations) -> Tensor:
    levels, pixels = torch.arange(256, device=x.device), x.flatten(2).long()
    count = level_counts(pixels)
    mapped = {AUTOCONTRAST: _stretched(count, levels), EQUALIZE: equalized(count, levels)}
    return looked_up(pixels, mapped, given.kind).view_as(x)


def _stretched(count: Tensor, levels: Tensor) -> Tensor:
    """Pillow's autocontrast: the darkest level becomes 0 and the brightest 255; a channel with one level is unchanged."""
    seen = (count > 0).long()
    low, high = seen.argmax(2, keepdim=True), 255 - seen.flip(2).argmax(2, keepdim=True)
    span = (high - low).clamp(min=1).double()
    scale = (
        torch.full_like(span, 255.0) / span
    )  # a number by a tensor would be multiplied by its inverse, and rounded twice
    mapped = (levels * scale - low * scale).clamp(0, 255).long()
    return torch.where(high <= low, levels, mapped)


def _saturate(x: Tensor, given: Operations) -> Tensor:
    if x.shape[1] != 3:
        return x
    return torch.where(_is(COLOR, given), _blend(gray_levels(x), x, _factor(given)[:, None, None, None]), x)


def _sharpen(x: Tensor, given: Operations) -> Tensor:
    """Blend with the smoothed image, or away from it, except at the border; kernel of ones with 5 in the middle, over 13."""
    if min(x.shape[2:]) < 3:
        return x
    middle = x[:, :, 1:-1, 1:-1].int()
    rows = x[:, :, :-2].int() + x[:, :, 1:-1] + x[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * middle
    smooth = F.pad((2 * sums + 13) // 26 - middle, (1, 1, 1, 1)) + x
    return torch.where(_is(SHARPNESS, given), _blend(smooth, x, _factor(given)[:, None, None, None]), x)


def _is(kind: int, given: Operations) -> Tensor:
    return (given.kind == kind)[:, None, None, None]


def _factor(given: Operations) -> Tensor:
    """The factor of Pillow's enhancements, float32 [N]; 1 changes nothing."""
    part = given.level / LEVELS
    return ((1.0 + given.sign * part * 0.9).clamp(min=0.1) if given.increasing else part * 1.8 + 0.1).float()


def _blend(other: Tensor, original: Tensor, factor: Tensor) -> Tensor:
    """Pillow's blend, uint8: other + factor * (original - other), clipped, without rounding."""
    first = other.float()
    return (first + factor * (original.float() - first)).clamp(0, 255).to(torch.uint8)


def gray_levels(x: Tensor) -> Tensor:
    """Pillow's luma, integers [N, 1, H, W]; the image itself if it doesn't have three channels."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.int().split(1, 1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


TIMM_STEPS: tuple[tuple[Callable[[Tensor, Operations], Tensor], tuple[int, ...]], ...] = (
    (_move, (ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y)),
    (_map_levels, (INVERT, POSTERIZE, SOLARIZE, SOLARIZE_ADD, BRIGHTNESS, CONTRAST)),
    (_map_histogram, (AUTOCONTRAST, EQUALIZE)),
    (_saturate, (COLOR,)),
    (_sharpen, (SHARPNESS,)),
)
