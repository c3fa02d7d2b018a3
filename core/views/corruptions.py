"""Five of ImageNet-C's corruptions at severities 1 to 5 (Hendrycks & Dietterich 2019, arXiv:1903.12261), and four others, by our own draws.

Applied to images as the network gets them, after the crop. The constants of the five are the authors', in two tables: for pictures of 224
pixels (ImageNet-C) and of 32 pixels (CIFAR-10-C). The others (disturbances.py) have one for all sizes. Noise is keyed by position, so an
image gets the same on any number of processes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from .disturbances import clutter, occlusion, rotation, scale

Table = Literal["imagenet", "cifar"]
SEVERITIES = range(1, 6)
# Of rotation, scale, occlusion and clutter, severities 1 to 5, at any size.
OWN_CONSTANTS: Mapping[str, tuple[float, ...]] = {
    "rotation": (10, 20, 30, 45, 60),  # degrees, to the left or to the right
    "scale": (1.15, 1.3, 1.5, 1.75, 2.0),  # times as large, or as small
    "occlusion": (0.1, 0.2, 0.3, 0.4, 0.5),  # share of the picture that is covered
    "clutter": (4, 8, 12, 16, 24),  # bars over the picture
}
# Of make_imagenet_c.py and make_cifar_c.py, severities 1 to 5.
CONSTANTS: Mapping[str, Mapping[Table, tuple[tuple[float, ...], ...]]] = {
    # standard deviation of the noise
    "gaussian_noise": {
        "imagenet": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
        "cifar": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    },
    # radius of the disk, and sigma of the blur that smooths its edge
    "defocus_blur": {
        "imagenet": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "cifar": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    },
    # what is added to the value of HSV
    "brightness": {
        "imagenet": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        "cifar": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    },
    # what is left of the distance from the channel's mean
    "contrast": {
        "imagenet": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        "cifar": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    },
    # quality of the JPEG file
    "jpeg_compression": {
        "imagenet": ((25,), (18,), (15,), (10,), (7,)),
        "cifar": ((80,), (65,), (58,), (50,), (40,)),
    },
    **{name: dict.fromkeys(("imagenet", "cifar"), tuple(zip(row))) for name, row in OWN_CONSTANTS.items()},
}


def corrupt(images: Tensor, draws: Draws, name: str, severity: int, table: Table = "imagenet") -> Tensor:
    """uint8 [N, C, H, W] -> the same, corrupted; as the authors do, values are cut off, not rounded, to whole levels.

    name: one of CONSTANTS. severity: 1 to 5. table: imagenet, or cifar for pictures of 32 pixels. Raises UserError.
    """
    if name not in CONSTANTS:
        raise UserError(f"unknown corruption {name}; known: {', '.join(CONSTANTS)}")
    if severity not in SEVERITIES:
        raise UserError(f"a corruption has a severity of 1 to 5, got {severity}")
    if images.dtype != torch.uint8:
        raise UserError(f"corruptions are defined on 8-bit pictures, but these are {images.dtype}")
    constants = CONSTANTS[name][table][severity - 1]
    if name == "jpeg_compression":
        return _jpeg(images, int(constants[0]))
    x = CORRUPTIONS[name](images.double() / 255, draws.stream("corruption"), *constants)
    # A rounding error below a whole level must not cost that level.
    return (x.clamp(0, 1) * 255 + 1e-9).floor().to(torch.uint8)


def gaussian_noise(x: Tensor, draws: Draws, std: float) -> Tensor:
    """x: [N, C, H, W] in 0..1; independent noise on each value."""
    return x + std * draws.normal("noise", *x.shape[1:]).to(x)


def defocus_blur(x: Tensor, draws: Draws, radius: float, smoothing: float) -> Tensor:
    """The mean over a disk whose edge is smoothed; the border is mirrored without repeating the outermost pixel."""
    kernel = disk_kernel(radius, smoothing)
    padded = _mirrored(x, kernel.shape[0] // 2)
    # Tap by tap: on a CPU, a convolution of doubles would hold the whole batch once for each tap, up to 441 times.
    blurred = torch.zeros_like(x)
    for row, column in kernel.nonzero().tolist():
        part = padded[..., row : row + x.shape[2], column : column + x.shape[3]]
        blurred.add_(part, alpha=float(kernel[row, column]))
    return blurred


def brightness(x: Tensor, draws: Draws, added: float) -> Tensor:
    """The value of HSV (the largest channel) rises; hue and saturation stay, so that black becomes gray."""
    value = x.amax(1, keepdim=True)
    raised = (value + added).clamp(max=1.0)
    return torch.where(value > 0, x * (raised / value.clamp(min=1e-12)), raised.expand_as(x))


def contrast(x: Tensor, draws: Draws, left: float) -> Tensor:
    """Each channel is pulled to its mean over the picture."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * left + mean


CORRUPTIONS: Mapping[str, Callable[..., Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "defocus_blur": defocus_blur,
    "brightness": brightness,
    "contrast": contrast,
    "rotation": rotation,
    "scale": scale,
    "occlusion": occlusion,
    "clutter": clutter,
}


@lru_cache(maxsize=16)
def disk_kernel(radius: float, smoothing: float) -> Tensor:
    """A disk of this radius in pixels with sum 1, blurred by a Gaussian of 3 or (radius above 8) 5 taps: float64 [side, side]."""
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (offset[:, None] ** 2 + offset**2 <= radius**2).double()
    flat = inside / inside.sum()
    step = torch.arange(-(taps // 2), taps // 2 + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (step / smoothing) ** 2)
    weights = weights / weights.sum()
    padded = _mirrored(flat[None, None], taps // 2)
    return F.conv2d(padded, (weights[:, None] * weights)[None, None])[0, 0]


def _mirrored(x: Tensor, reach: int) -> Tensor:
    """Pad [N, C, H, W] by reflection, also beyond the size of the image."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = torch.arange(-reach, size + reach, device=x.device) % max(1, 2 * size - 2)
        x = x.index_select(axis, torch.where(place < size, place, 2 * size - 2 - place))
    return x


def _jpeg(images: Tensor, quality: int) -> Tensor:
    """Through a JPEG file in memory; images of one channel stay gray. Raises UserError for other numbers of channels."""
    if images.shape[1] not in (1, 3):
        raise UserError(f"jpeg_compression takes pictures of 1 or 3 channels, but these have {images.shape[1]}")
    found = []
    for image in images.cpu():
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(buffer, "JPEG", quality=quality)
        pixels = torch.from_numpy(np.array(Image.open(buffer)))
        found.append(pixels.view(*image.shape[1:], -1).permute(2, 0, 1))
    return torch.stack(found).to(images.device)
