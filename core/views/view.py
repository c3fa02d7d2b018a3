"""One view of each image: crop, affine jitter, colour and erasing, with parameters for each sample, batched on the device.

Parameters come from Draws, with torchvision's distributions. Crops are rounded to uint8, since loader workers send uint8: so a set
that is resident on the device and a folder give the same view at the same position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from ..hostmemory import empty
from ..numerics import eager_cpu
from .augmentation import Augmentation, probability
from .boxes import centre_boxes, random_boxes
from .colour import FIELD, Colours, cache_slices, constant, draw_jitter, recolour
from .erasing import random_erasing
from .randaugment import rand_augment
from .resample import Interpolation, centre_cut, crop_resize, crop_resize_each, resize_centre
from .scaled_decode import scaled_boxes, useful_scale
from .timm_randaugment import TimmRandAugment, timm_rand_augment

Sides = Sequence[tuple[int, int]]  # (H, W) of each picture
SMALLEST_CROP = 0.01  # the picture is resized to 1 / crop of the view before the centre is cut out
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    """One view of each image, in two halves: `crop` (uint8 to uint8, in a worker or on the device) and `finish` (on the device).

    size: pixels of the square result. mean, std: normalisation, one number a channel (cycled over other channel counts).
    index: which view this is, counted from 0; picks its number of the keys that hold one a view.
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        augmentation: Augmentation = Augmentation(),
        index: int = 0,
    ) -> None:
        self.size, self.mean, self.std, self.augmentation = size, mean, std, augmentation
        self.difference = probability(augmentation.difference, index)
        self.jitter_p = probability(augmentation.jitter_p, index)
        self.grayscale = probability(augmentation.grayscale, index)
        self.blur = probability(augmentation.blur, index)
        self.solarize = probability(augmentation.solarize, index)
        self.invert = probability(augmentation.invert, index)

    def boxes(self, draws: Draws, height: int | Tensor, width: int | Tensor) -> tuple[Tensor, Tensor | None]:
        """The crop boxes, int64 [N, 4], and which views are mirrored, bool [N]; height, width: one size for all images, or int64 [N]."""
        return self._places(draws, height, width), draws.bernoulli(
            "flip", self.augmentation.flip
        ) if self.augmentation.flip else None

    def _places(self, draws: Draws, height: int | Tensor, width: int | Tensor) -> Tensor:
        if self.augmentation.scale is None:
            return centre_boxes(len(draws.positions), height, width, self.augmentation.centre, draws.positions.device)
        return random_boxes(draws.stream("crop"), height, width, self.augmentation.scale, self.augmentation.ratio)

    def crop(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 [N, C, H, W] -> uint8 [N, C, size, size]: crop, resize, flip; uint16 likewise."""
        boxes, flip = self.boxes(draws, *images.shape[2:])
        return crop_resize(images, boxes, self.size, self.augmentation.interpolation, flip)

    def crop_each(
        self, pictures: Sequence[Tensor], draws: Draws, sizes: Sides | None = None, out: Tensor | None = None
    ) -> Tensor:
        """`crop` of images [C, H, W] of different sizes, on the CPU: bit-equal to cropping each image alone.

        sizes: the full sizes of images that were decoded scaled; the same parts of the images are cut out.
        out: where to write the result, [N, C, size, size], in the deepest dtype of the images.
        """
        if len({picture.dtype for picture in pictures}) > 1:  # each image is rounded at its own depth
            alone = [None] * len(pictures) if sizes is None else [[size] for size in sizes]
            rows = enumerate(zip(pictures, alone, strict=True))
            mixed = stack_pictures([self.crop_each([p], _row(draws, n), size)[0] for n, (p, size) in rows])
            return mixed if out is None else out.copy_(mixed)
        stored = torch.tensor([picture.shape[1:] for picture in pictures])
        full = stored if sizes is None else torch.tensor(sizes)
        boxes, flip = self.boxes(draws, *full.unbind(1))
        if sizes is not None:
            boxes = scaled_boxes(boxes, full, stored)
        return crop_resize_each(pictures, boxes, self.size, self.augmentation.interpolation, flip, out)

    def useful_scale(self, draws: Draws, height: int, width: int) -> int:
        """The largest s of 1, 2, 4, 8 such that the box that `draws` (one position) gives is at least as large as the view at 1 / s."""
        _, _, box_height, box_width = self._places(draws, height, width)[0].tolist()
        return useful_scale(box_height, box_width, self.size)

    def finish(self, crops: Tensor, draws: Draws, out: Tensor | None = None) -> Tensor:
        """uint8 [N, C, size, size] -> normalised float32 of the same shape: affine jitter, colour, normalisation, erasing.

        out: where to write the result, contiguous; saves the copy when views are stacked.
        """
        crops = self._augment(crops, draws)
        colours = self._colours(draws) if crops.shape[1] == 3 else Colours()
        full = float(torch.iinfo(crops.dtype).max)
        x = crops
        if self.augmentation.rotate or self.augmentation.shift or self.augmentation.zoom != (1.0, 1.0):
            x = affine(
                crops.float().div_(full),
                draws.stream("affine"),
                self.augmentation.rotate,
                self.augmentation.shift,
                self.augmentation.zoom,
            )
        if not eager_cpu(x):
            x = self._erase(self.pixels(x, colours), draws)
            return x if out is None else out.copy_(x)
        out = empty(*crops.shape) if out is None else out
        for rows in cache_slices(out):
            part = out[rows].copy_(x[rows])
            part = part.div_(full) if x is crops else part
            part = recolour(part, colours.rows(rows), self.largest_sigma)
            normalise(part, self.mean, self.std, out[rows])
        return out if not self.augmentation.erase else out.copy_(self._erase(out, draws))

    def pixels(self, x: Tensor, colours: Colours) -> Tensor:
        """Colour and normalisation with static shapes, of crops or floats in 0..1: the part of `finish` that is worth compiling."""
        x = x if x.dtype == torch.float32 else x.float() / torch.iinfo(x.dtype).max
        return normalise(recolour(x, colours, self.largest_sigma), self.mean, self.std)

    @property
    def largest_sigma(self) -> float:
        """The largest sigma of the blur, in pixels of the view."""
        return self.augmentation.blur_sigma[1] * self.size / 224.0

    def _augment(self, crops: Tensor, draws: Draws) -> Tensor:
        if self.augmentation.timm_randaugment is not None:
            settings = TimmRandAugment.parse(self.augmentation.timm_randaugment)
            filter = self.augmentation.interpolation
            return timm_rand_augment(crops, draws.stream("randaugment"), settings, self.mean, filter)
        if not self.augmentation.randaugment:
            return crops
        return rand_augment(
            crops, draws.stream("randaugment"), self.augmentation.randaugment, self.augmentation.magnitude
        )

    def _erase(self, x: Tensor, draws: Draws) -> Tensor:
        if not self.augmentation.erase:
            return x
        return random_erasing(
            x,
            draws.stream("erase"),
            self.augmentation.erase,
            self.augmentation.erase_scale,
            self.augmentation.erase_fill,
            self.augmentation.erase_ratio,
        )

    def _colours(self, draws: Draws) -> Colours:
        jittered = self.jitter_p and any(self.augmentation.jitter)
        colours = (
            draw_jitter(draws.stream("jitter"), self.augmentation.jitter, self.jitter_p) if jittered else Colours()
        )
        low, high = self.augmentation.blur_sigma
        return colours._replace(
            gray=draws.bernoulli("gray", self.grayscale) if self.grayscale else None,
            blur=draws.bernoulli("blur", self.blur) if self.blur else None,
            sigma=draws.uniform("sigma", low=low, high=high) * (self.size / 224.0) if self.blur else None,
            solarize=draws.bernoulli("solarize", self.solarize) if self.solarize else None,
            invert=draws.bernoulli("invert", self.invert) if self.invert else None,
            difference=draws.bernoulli("difference", self.difference) if self.difference else None,
            field=draws.uniform("field", 3, FIELD, FIELD) if self.difference else None,
        )

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return self.finish(self.crop(images, draws), draws)


class Evaluation:
    """The view for evaluation, without randomness: resize the shorter side to `resize`, then cut out the centre.

    `resize` is size / crop where it is not given, rounded down as in timm: at a crop of 0.875, 224 px are cut from 256. Images that
    already have the size are taken whole.

    crop: Part of the resized shorter side that the view keeps, above 0 and up to 1.
    resize: Pixels of the resized shorter side, `size` to 100 times as many; then crop stays 1.
    interpolation: How pictures are resized: bilinear, or bicubic, which DINOv2, MAE and timm's ViTs are evaluated with.
    """

    def __init__(
        self,
        size: int,
        *,
        crop: float = 1.0,
        resize: int | None = None,
        interpolation: Interpolation = "bilinear",
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        if not SMALLEST_CROP <= crop <= 1.0:
            raise UserError(
                f"data.crop: {crop} is given; expected the part of the shorter side to keep, {SMALLEST_CROP} to 1"
            )
        largest = int(size / SMALLEST_CROP)
        if resize is not None and (crop != 1.0 or not size <= resize <= largest):
            why = f"data.crop is {crop} too, and one of the two says it" if crop != 1.0 else f"data.size is {size}"
            raise UserError(
                f"data.resize: {resize} is given, but {why}; expected the pixels of the shorter side, {size} to {largest}, and no crop"
            )
        self.size, self.short = size, int(size / crop) if resize is None else resize
        self.interpolation: Interpolation = interpolation
        self.mean, self.std = mean, std

    def describe(self) -> dict[str, Any]:
        """All that decides what the view shows, as plain JSON."""
        shown = {"size": self.size, "resize": self.short, "interpolation": self.interpolation}
        return {**shown, "mean": list(self.mean), "std": list(self.std)}

    def in_words(self) -> str:
        """What the view shows, for messages."""
        if self.short == self.size:
            return f"pictures resized and cropped to {self.size} px, {self.interpolation}"
        return f"pictures resized to {self.short} and cropped to {self.size} px, {self.interpolation}"

    def worker(self, image: Tensor) -> Tensor:
        """uint8 [C, H, W] of any size -> uint8 [C, size, size]."""
        return self._crop(image[None])[0]

    def places(self, height: int, width: int, side: int) -> tuple[list[int], list[int]]:
        """The rows and columns of a picture (height x width) that lie under the centres of side x side cells of what the view shows.

        So `mask[rows][:, columns]` is the mask of a picture, resized to the nearest pixels and cut as the view cuts the picture.
        """
        resized, first = centre_cut(height, width, self.short, self.size)
        if (height, width) == (self.size, self.size):
            resized, first = (height, width), (0, 0)
        rows, columns = (
            [(2 * start * side + (2 * i + 1) * self.size) * whole // (2 * side * shown) for i in range(side)]
            for whole, shown, start in zip((height, width), resized, first, strict=True)
        )
        return rows, columns

    def _crop(self, images: Tensor) -> Tensor:
        if images.shape[2:] == (self.size, self.size):
            return images
        return resize_centre(images, self.short, self.size, self.interpolation)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> normalised float32 [N, C, size, size]; crops that `worker` made are not cropped again."""
        crops = self._crop(images)
        return normalise(crops.float() / torch.iinfo(crops.dtype).max, self.mean, self.std)


def stack_pictures(pictures: Sequence[Tensor]) -> Tensor:
    """Stack images of one shape. If 8 and 16 bits are mixed, 8-bit values are widened by 257: v / 255 = 257 v / 65535 exactly."""
    if len({picture.dtype for picture in pictures}) > 1:
        pictures = [p if p.dtype == torch.uint16 else (p.int() * 257).to(torch.uint16) for p in pictures]
    return torch.stack(list(pictures))


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number for each channel: of more channels than numbers, these are repeated in their order."""
    return tuple(float(values[i % len(values)]) for i in range(channels))


def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...], out: Tensor | None = None) -> Tensor:
    """(x - mean) / std for each channel; x: float [N, C, H, W] in 0..1; mean and std are repeated if there are more channels."""
    m = constant(per_channel(mean, x.shape[1]), x.device, 1)
    s = constant(per_channel(std, x.shape[1]), x.device, 1)
    return torch.sub(x, m, out=out).div_(s) if out is not None else (x - m).div_(s)


def _row(draws: Draws, n: int) -> Draws:
    return Draws(draws.seed, draws.positions[n : n + 1], draws.prefix)
