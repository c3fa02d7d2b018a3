"""Views of images: crops, affine jitter and colour, with one set of parameters per sample, batched on the device.

A crop with antialiased resizing and a flip is linear and separable, so it is two batched matrix products with per-sample
matrices; so is a Gaussian blur. Parameters come from Draws and follow torchvision's distributions. Crops are rounded to
uint8, because that is what a loader's worker sends: a resident set and a folder give the same view at the same position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .colour import colour_jitter, gaussian_blur, grayscale
from .draws import Draws
from .errors import UserError

Interpolation = Literal["bilinear", "bicubic"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_TRIES = 10


def resize_matrix(
    start: Tensor,
    length: Tensor,
    size_in: int,
    size_out: int,
    kernel: Interpolation,
    flip: Tensor | None = None,
    kept: range | None = None,
) -> Tensor:
    """The antialiased resampling of [start, start + length) to size_out as matrices, float32 [N, size_out, size_in].

    start, length: int64 [N]. kept: which of the size_out rows, all by default. Equal to torchvision's crop, then
    resize(antialias=True): the kernel (bilinear, or bicubic with a = -0.5) is stretched by the scale when shrinking, and
    weights outside of the crop are dropped before normalising.
    """
    kept = range(size_out) if kept is None else kept
    scale = (length.double() / size_out)[:, None, None]
    stretch = scale.clamp(min=1.0)
    # Coordinates relative to the crop, in float64: the same weights whether or not the crop was cut out before.
    column = torch.arange(size_in, device=start.device)[None, None, :] - start[:, None, None]
    row = torch.arange(kept.start, kept.stop, device=start.device, dtype=torch.float64)[None, :, None]
    centre = (row + 0.5) * scale
    x = ((column.double() + 0.5 - centre) / stretch).abs()
    if kernel == "bilinear":
        weight = (1.0 - x).clamp(min=0.0)
    else:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        weight = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    weight = weight * ((column >= 0) & (column < length[:, None, None]))
    weight = (weight / weight.sum(-1, keepdim=True)).float()
    return weight if flip is None else torch.where(flip[:, None, None], weight.flip(1), weight)


def crop_resize(images: Tensor, boxes: Tensor, size: int, kernel: Interpolation, flip: Tensor | None = None) -> Tensor:
    """Crop each image to its box and resize to size x size; uint8 (or uint16) [N, C, H, W] -> the same dtype [N, C, size, size].

    boxes: int64 [N, 4] as top, left, height, width. flip: bool [N], mirrors left and right.
    """
    top, left, height, width = boxes.unbind(1)
    rows = resize_matrix(top, height, images.shape[2], size, kernel)
    columns = resize_matrix(left, width, images.shape[3], size, kernel, flip)
    return _resample(images, rows, columns)


def resize_centre(images: Tensor, short: int, size: int, kernel: Interpolation) -> Tensor:
    """Resize the shorter side to `short`, then cut the central size x size; [N, C, H, W] -> the same dtype [N, C, size, size].

    Only the rows and columns that the cut keeps are computed; as in torchvision, they see what lies beyond the cut.
    """
    matrices = []
    for side in images.shape[2:]:
        resized = int(short * side / min(images.shape[2:]))
        whole = torch.tensor([0, side], device=images.device)
        first = round((resized - size) / 2)
        kept = range(first, first + size)
        matrices.append(resize_matrix(whole[:1], whole[1:], side, resized, kernel, kept=kept))
    return _resample(images, *matrices)


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows [N or 1, size, H], columns [N or 1, size, W]: the resampled images, rounded to their own dtype."""
    out = rows[:, None] @ images.float() @ columns.transpose(1, 2)[:, None]
    return out.round_().clamp_(0, torch.iinfo(images.dtype).max).to(images.dtype)


def random_boxes(
    draws: Draws, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """RandomResizedCrop's boxes, int64 [N, 4]: ten tries of (area, aspect), then the central fall-back, as torchvision does."""
    area = height * width * draws.uniform("area", CROP_TRIES, low=scale[0], high=scale[1]).double()
    aspect = draws.uniform("aspect", CROP_TRIES, low=math.log(ratio[0]), high=math.log(ratio[1])).double().exp()
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    whole = width / height
    fallback_w = width if whole <= ratio[1] else max(1, round(height * ratio[1]))
    fallback_h = height if whole >= ratio[0] else max(1, round(width / ratio[0]))
    found = fits.any(1)
    w = torch.where(found, w, fallback_w)
    h = torch.where(found, h, fallback_h)
    unit = draws.uniform("corner", 2).double()
    top = torch.where(found, (unit[:, 0] * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(found, (unit[:, 1] * (width - w + 1)).long(), (width - w) // 2)
    return torch.stack([top, left, h, w], 1)


def centre_boxes(n: int, height: int, width: int, fraction: float, device: torch.device) -> Tensor:
    """The central square of side fraction * min(height, width), int64 [n, 4]."""
    side = max(1, round(min(height, width) * fraction))
    box = torch.tensor([(height - side) // 2, (width - side) // 2, side, side], device=device)
    return box.expand(n, 4)


def affine(x: Tensor, draws: Draws, degrees: float, shift: float, zoom: tuple[float, float]) -> Tensor:
    """Rotate, shift (fraction of the side) and scale about the centre, bilinear, edges repeated; float [N, C, H, W]."""
    angle = draws.uniform("rotate", low=-degrees, high=degrees) * (math.pi / 180.0)
    factor = draws.uniform("zoom", low=math.log(zoom[0]), high=math.log(zoom[1])).exp()
    move = draws.uniform("shift", 2, low=-2.0 * shift, high=2.0 * shift)
    cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
    theta = torch.stack([cos, -sin, move[:, 0], sin, cos, move[:, 1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


class View:
    """One view of each image. Two halves: `crop` (uint8 to uint8, in a worker or on the device) and `finish` (on the device).

    size: pixels of the square result. mean, std: normalisation, one number a channel (cycled over other channel counts).
    scale, ratio: RandomResizedCrop; scale None takes the central square instead. flip: probability of mirroring. rotate
    (degrees), shift (fraction), zoom (range): affine jitter. jitter: brightness, contrast, saturation, hue, applied with
    probability jitter_p in a random order. grayscale, blur, solarize, invert: probabilities. blur_sigma: pixels at 224 px,
    scaled with the size. Colour operations are left out for pictures that do not have three channels.
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        *,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
        flip: float = 0.0,
        rotate: float = 0.0,
        shift: float = 0.0,
        zoom: tuple[float, float] = (1.0, 1.0),
        jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
        jitter_p: float = 0.0,
        grayscale: float = 0.0,
        blur: float = 0.0,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarize: float = 0.0,
        invert: float = 0.0,
        centre: float = 1.0,
    ) -> None:
        self.size, self.mean, self.std = size, mean, std
        self.scale, self.ratio, self.flip, self.centre = scale, ratio, flip, centre
        self.interpolation: Interpolation = interpolation
        self.rotate, self.shift, self.zoom = rotate, shift, zoom
        self.jitter, self.jitter_p, self.grayscale = jitter, jitter_p, grayscale
        self.blur, self.blur_sigma, self.solarize, self.invert = blur, blur_sigma, solarize, invert

    def crop(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 [N, C, H, W] -> uint8 [N, C, size, size]: crop, resize, flip."""
        n, _, height, width = images.shape
        if self.scale is None:
            boxes = centre_boxes(n, height, width, self.centre, images.device)
        else:
            boxes = random_boxes(draws.stream("crop"), height, width, self.scale, self.ratio)
        flip = draws.bernoulli("flip", self.flip) if self.flip else None
        return crop_resize(images, boxes, self.size, self.interpolation, flip)

    def finish(self, crops: Tensor, draws: Draws) -> Tensor:
        """uint8 [N, C, size, size] -> normalised float32 of the same shape: affine jitter, colour, normalisation."""
        x = crops.float() / torch.iinfo(crops.dtype).max
        if self.rotate or self.shift or self.zoom != (1.0, 1.0):
            x = affine(x, draws.stream("affine"), self.rotate, self.shift, self.zoom)
        if x.shape[1] == 3:
            x = self._colour(x, draws)
        return normalise(x, self.mean, self.std)

    def _colour(self, x: Tensor, draws: Draws) -> Tensor:
        if self.jitter_p and any(self.jitter):
            x = colour_jitter(x, draws.stream("jitter"), self.jitter, self.jitter_p)
        if self.grayscale:
            x = torch.where(_column(draws.bernoulli("gray", self.grayscale)), grayscale(x), x)
        if self.blur:
            chosen = _column(draws.bernoulli("blur", self.blur))
            sigma = draws.uniform("sigma", low=self.blur_sigma[0], high=self.blur_sigma[1]) * (self.size / 224.0)
            x = torch.where(chosen, gaussian_blur(x, sigma, self.blur_sigma[1] * self.size / 224.0), x)
        if self.solarize:
            x = torch.where(_column(draws.bernoulli("solarize", self.solarize)) & (x >= 0.5), 1.0 - x, x)
        if self.invert:
            x = torch.where(_column(draws.bernoulli("invert", self.invert)), 1.0 - x, x)
        return x

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return self.finish(self.crop(images, draws), draws)


class Evaluation:
    """The deterministic view: the shorter side is resized to size / crop (at 0.875: 256 for 224), then the centre is cut out.

    As in timm, size / crop is rounded down. Pictures that already have the size are taken whole.
    """

    def __init__(
        self,
        size: int,
        *,
        crop: float = 1.0,
        interpolation: Interpolation = "bilinear",
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        if not 0.0 < crop <= 1.0:
            raise UserError(f"data.crop: {crop} is given; expected the part of the shorter side to keep, up to 1")
        self.size, self.short = size, int(size / crop)
        self.interpolation: Interpolation = interpolation
        self.mean, self.std = mean, std

    def worker(self, image: Tensor) -> Tensor:
        """uint8 [C, H, W] of any size -> uint8 [C, size, size]."""
        return self._crop(image[None])[0]

    def _crop(self, images: Tensor) -> Tensor:
        if images.shape[2:] == (self.size, self.size):
            return images
        return resize_centre(images, self.short, self.size, self.interpolation)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> normalised float32 [N, C, size, size]; what `worker` returned is not cropped again."""
        crops = self._crop(images)
        return normalise(crops.float() / torch.iinfo(crops.dtype).max, self.mean, self.std)


class Multiview:
    """Several views of each image, each under its own stream: "view0/", "view1/", ..."""

    def __init__(self, views: list[View]) -> None:
        self.views = views

    def crop(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 [N, C, H, W] -> uint8 [N, V, C, size, size]: what a worker sends."""
        return torch.stack([view.crop(images, draws.stream(f"view{v}")) for v, view in enumerate(self.views)], 1)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Raw [N, C, H, W] or cropped [N, V, C, size, size] -> normalised float32 [V, N, C, size, size]."""
        crops = self.crop(images, draws) if images.ndim == 4 else images
        return torch.stack([view.finish(crops[:, v], draws.stream(f"view{v}")) for v, view in enumerate(self.views)])


def stack_pictures(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures of one shape as one batch. Where 8 and 16 bits meet, 8 are widened by 257: v / 255 = 257 v / 65535 exactly."""
    if len({picture.dtype for picture in pictures}) > 1:
        pictures = [p if p.dtype == torch.uint16 else (p.int() * 257).to(torch.uint16) for p in pictures]
    return torch.stack(list(pictures))


def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x - mean) / std by channel; x float in 0..1 [N, C, H, W]; the numbers are cycled over channels beyond their count."""
    channels = [i % len(mean) for i in range(x.shape[1])]
    m = torch.tensor([mean[i] for i in channels], device=x.device).view(1, -1, 1, 1)
    s = torch.tensor([std[i] for i in channels], device=x.device).view(1, -1, 1, 1)
    return (x - m) / s


def _column(flag: Tensor) -> Tensor:
    return flag[:, None, None, None]
