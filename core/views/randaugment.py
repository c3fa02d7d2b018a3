"""RandAugment, batched: a few of torchvision's fourteen operations are drawn for each image, all at one magnitude.

Each image of a batch has its own operation, so a batch passes five steps, each for one kind of operation: move pixels; map levels by
a table; map levels by a table made from the histogram; blend with the gray image; blend with the smoothed image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..draws import Draws
from ..errors import UserError

RANDAUGMENT_OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness",
    "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, BRIGHTNESS, COLOR, CONTRAST, SHARPNESS = range(10)
POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE = range(10, 14)
STRONGEST = 30.0  # the last of torchvision's 31 magnitudes
THRESHOLDS: list[float] = torch.linspace(1.0, 0.0, 31).tolist()
CACHED_LEVELS = 1 << 18  # values that a step processes at once on the CPU, so that its temporaries stay in the cache


def rand_augment(x: Tensor, draws: Draws, count: int, magnitude: float) -> Tensor:
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719) with torchvision's operations; uint8 [N, C, H, W] -> the same.

    count: operations for each image, drawn with replacement. magnitude: 0 to 30; signed operations get a random sign. Pixels move
    by nearest neighbour, black from outside. Color has no effect on images without three channels. Raises UserError for images
    that are not 8-bit, since the operations are defined on 256 levels.
    """
    if x.dtype != torch.uint8:
        raise UserError(
            f"data.views.randaugment: works on 8-bit pictures, but these are {x.dtype}; set it to 0 (also in data.strong)"
        )
    for turn in range(count):
        operation = draws.integers(f"operation{turn}", len(RANDAUGMENT_OPERATIONS))
        sign = 1.0 - 2.0 * draws.bernoulli(f"sign{turn}", 0.5)
        x = augment(x, operation, sign, magnitude / STRONGEST)
    return x


def augment(x: Tensor, operation: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Apply to each image its own operation, int64 [N] into RANDAUGMENT_OPERATIONS, with its sign, +1 or -1 [N]; strength: 0..1."""
    if not x.is_cpu or torch.compiler.is_compiling():
        # Static shapes: every image passes every step, unchanged if its operation is of another kind; nothing waits for the device.
        for step, _ in STEPS:
            x = step(x, operation, sign, strength)
        return x
    x, kind = x.clone(), operation.tolist()
    few = max(1, CACHED_LEVELS // x[0].numel())
    for step, members in STEPS:
        chosen = [n for n, k in enumerate(kind) if k in members]
        for first in range(0, len(chosen), few):
            rows = torch.tensor(chosen[first : first + few])
            x[rows] = step(x[rows], operation[rows], sign[rows], strength)
    return x


def _move(x: Tensor, operation: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Shear about the corner, translate, or rotate about the centre, by nearest neighbours."""
    height, width = x.shape[2:]
    matrices = _matrices(height, width, strength, x.device)
    about = matrices[operation, (sign < 0).long(), :, None, None].unbind(1)
    column = torch.arange(width, device=x.device) - (width - 1) * 0.5  # pixels from the centre
    row = (torch.arange(height, device=x.device) - (height - 1) * 0.5)[:, None]
    from_column = (about[0] * column + about[2] + (width - 1) * 0.5 + about[1] * row).round_()
    from_row = (about[3] * column + about[5] + (height - 1) * 0.5 + about[4] * row).round_()
    nearest_column, nearest_row = from_column.clamp(0, width - 1), from_row.clamp(0, height - 1)
    seen = (from_column == nearest_column) & (from_row == nearest_row)
    index = (nearest_row * width + nearest_column).long().flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, index).view_as(x) * seen[:, None]


def _matrices(height: int, width: int, strength: float, device: torch.device) -> Tensor:
    """Affine maps from pixels of the result to pixels of the image, about the centre: [operation, positive or negative, 6]."""
    if torch.compiler.is_compiling():
        return torch.tensor(_where_from(height, width, strength), device=device)
    return _kept_matrices(height, width, strength, device)


@lru_cache(maxsize=64)
def _kept_matrices(height: int, width: int, strength: float, device: torch.device) -> Tensor:
    """Made once, since a copy to a device waits for the device."""
    with torch.inference_mode(False):
        return torch.tensor(_where_from(height, width, strength), device=device)


def _where_from(height: int, width: int, strength: float) -> list[list[list[float]]]:
    shear, radians = 0.3 * strength, math.radians(30.0 * strength)
    across, down = (float(int(150.0 / 331.0 * side * strength)) for side in (width, height))
    same = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    found = [[same, same] for _ in RANDAUGMENT_OPERATIONS]
    for k, sign in enumerate((1.0, -1.0)):
        s, sine, cosine = sign * shear, math.sin(sign * radians), math.cos(radians)
        found[SHEAR_X][k] = [1.0, s, s * height / 2, 0.0, 1.0, 0.0]
        found[SHEAR_Y][k] = [1.0, 0.0, 0.0, s, 1.0, s * width / 2]
        found[TRANSLATE_X][k] = [1.0, 0.0, -sign * across, 0.0, 1.0, 0.0]
        found[TRANSLATE_Y][k] = [1.0, 0.0, 0.0, 0.0, 1.0, -sign * down]
        found[ROTATE][k] = [cosine, -sine, 0.0, sine, cosine, 0.0]
    return found


def _map_levels(x: Tensor, operation: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Brightness, contrast, posterize and solarize as tables of 256 levels, [N, 1, 256]."""
    levels = torch.arange(256, device=x.device)
    ratio = (1.0 + 0.9 * strength * sign)[:, None, None]
    mean = _gray(x).mean((1, 2, 3))[:, None, None]
    bits = 8 - round(4.0 * strength)
    mapped = {
        BRIGHTNESS: (levels * ratio).clamp(0, 255).long(),
        CONTRAST: (levels * ratio + (1.0 - ratio) * mean).clamp(0, 255).long(),
        POSTERIZE: levels & (0xFF << (8 - bits) & 0xFF),
        SOLARIZE: torch.where(levels >= _threshold(strength), 255 - levels, levels),
    }
    return looked_up(x.flatten(2).long(), mapped, operation).view_as(x)


def _threshold(strength: float) -> float:
    """The lowest level to invert. Whole magnitudes take it from torchvision's float32 table, whose rounding matters at some of them."""
    magnitude = strength * STRONGEST
    whole = round(magnitude)
    return 255.0 * (THRESHOLDS[whole] if abs(magnitude - whole) < 1e-6 else 1.0 - strength)


def _map_histogram(x: Tensor, operation: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Autocontrast and equalize as tables of 256 levels for each channel, [N, C, 256]."""
    levels, pixels = torch.arange(256, device=x.device), x.flatten(2).long()
    count = level_counts(pixels)
    mapped = {AUTOCONTRAST: _stretched(count, levels), EQUALIZE: equalized(count, levels)}
    return looked_up(pixels, mapped, operation).view_as(x)


def level_counts(pixels: Tensor) -> Tensor:
    """How many pixels of each channel have each level: int64 [N, C, H * W] -> int64 [N, C, 256]."""
    count = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=pixels.device)
    return count.scatter_add_(2, pixels, torch.ones_like(pixels))


def looked_up(pixels: Tensor, mapped: Mapping[int, Tensor], operation: Tensor) -> Tensor:
    """Map pixels, int64 [N, C, H * W], by the table of their image's operation; uint8 of the same shape."""
    n, channels = pixels.shape[:2]
    table = torch.arange(256, device=pixels.device).expand(n, channels, 256)
    for name, levels in mapped.items():
        table = torch.where((operation == name)[:, None, None], levels, table)
    return table.to(torch.uint8).gather(2, pixels)


def _stretched(count: Tensor, levels: Tensor) -> Tensor:
    """Autocontrast: the darkest level becomes 0 and the brightest 255; a channel with one level is unchanged."""
    seen = (count > 0).long()
    low, high = seen.argmax(2, keepdim=True), 255 - seen.flip(2).argmax(2, keepdim=True)
    flat = low == high
    span = torch.where(flat, 1.0, (high - low) * (1.0 / 255.0))
    return ((levels - torch.where(flat, 0, low)) / span).clamp(0, 255).long()


def equalized(count: Tensor, levels: Tensor) -> Tensor:
    """Histogram equalisation in integers as in Pillow: 255 steps of equal count, without the brightest level."""
    up_to = count.cumsum(2)
    total = up_to[..., -1:]
    brightest = up_to.argmax(2, keepdim=True)
    step = (total - count.gather(2, brightest)) // 255
    below = F.pad(up_to[..., :-1], (1, 0))
    mapped = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    mapped = torch.where(levels == 0, 0, mapped)
    return torch.where(step == 0, levels, mapped)


def _saturate(x: Tensor, operation: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Color: blend with the gray image, or away from it."""
    original = x.float()
    gray = _gray(x) if x.shape[1] == 3 else original
    return _blend(original, gray, (operation == COLOR) * 0.9 * strength * sign)


def _sharpen(x: Tensor, operation: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Sharpness: blend with the smoothed image, or away from it, except at the border; kernel of ones with 5 in the middle, over 13."""
    if min(x.shape[2:]) < 3:
        return x
    original = x.float()
    middle = original[:, :, 1:-1, 1:-1]
    rows = original[:, :, :-2] + original[:, :, 1:-1] + original[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = F.pad(((sums + 4.0 * middle) * (1.0 / 13.0)).round_() - middle, (1, 1, 1, 1)) + original
    return _blend(original, smooth, (operation == SHARPNESS) * 0.9 * strength * sign)


def _blend(original: Tensor, other: Tensor, away: Tensor) -> Tensor:
    """original + away * (original - other), away [N]; in this form, equal pixels stay exactly unchanged."""
    return (original + away[:, None, None, None] * (original - other)).clamp_(0, 255).to(torch.uint8)


def _gray(x: Tensor) -> Tensor:
    """Luma in whole levels, float [N, 1, H, W]; the image itself if it doesn't have three channels."""
    if x.shape[1] != 3:
        return x.float()
    red, green, blue = x.float().split(1, 1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor_()


STEPS: tuple[tuple[Callable[[Tensor, Tensor, Tensor, float], Tensor], tuple[int, ...]], ...] = (
    (_move, (SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE)),
    (_map_levels, (BRIGHTNESS, CONTRAST, POSTERIZE, SOLARIZE)),
    (_map_histogram, (AUTOCONTRAST, EQUALIZE)),
    (_saturate, (COLOR,)),
    (_sharpen, (SHARPNESS,)),
)
