"""Mixup and cutmix: images and labels of neighbouring positions are mixed.

The partner of position p is p xor 1. The order of a batch is random, so the partner is a random other image. Both are in the same
micro-batch if its size is even, so the result does not depend on how the batch is split.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from .erasing import within

MixBy = Literal["pair", "batch"]


class Mixing(NamedTuple):
    """Parameters of Beta(a, a) for mixup and for cutmix; 0 is off. If both are on, each is applied to half of the images.

    by: whether each image of a pair has a lambda, a kind and a box of its own, or all of a global batch the same, as in timm; then each
    batch has a half chance of either kind.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    by: MixBy = "pair"

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return bool(self.mixup or self.cutmix)

    def draws_of(self, draws: Draws, batch_size: int) -> Draws:
        """The draws that `mix_images` takes, of the stream that each image would have. batch_size: images of a global batch."""
        if self.by == "pair":
            return draws
        # Positions of a batch are consecutive, and the first one of step s is s * batch_size: equal rows, whoever holds them.
        return Draws(draws.seed, draws.positions // batch_size, f"{draws.prefix}batch/")

    def check(self, batch_size: int, parts: int) -> None:
        """Raises UserError for parameters below 0, and if some of the parts (processes x micro-batches) of a batch have odd sizes."""
        for key in ("mixup", "cutmix"):
            if getattr(self, key) < 0:
                raise UserError(
                    f"method.{key}: expected the parameter of Beta(a, a), 0 for none, got {getattr(self, key)}"
                )
        if self.on and batch_size % (2 * parts):
            raise UserError(
                f"optim.batch_size: {batch_size} does not divide into {parts} part{'s' if parts > 1 else ''} of even size; "
                f"method.mixup and method.cutmix mix pairs of images, choose a multiple of {2 * parts}"
            )


def mix_images(images: Tensor, labels: Tensor, draws: Draws, classes: int, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """images float [N, C, H, W] and labels int64 [N] -> mixed images and labels, float [N, classes] with rows summing to 1.

    Mixup (Zhang et al. 2018, arXiv:1710.09412, eq. 1-2): lambda x + (1 - lambda) x', labels likewise. Cutmix (Yun et al. 2019,
    arXiv:1905.04899, section 3.1): a box of area 1 - lambda with a uniform centre, clipped at the border, comes from the partner; the
    labels' lambda is the share of the area that stays. N must be even, and positions come in pairs (2k, 2k + 1).
    """
    n, _, height, width = images.shape
    one_hot = F.one_hot(labels, classes).to(images.dtype)
    if not mixing.on:
        return images, one_hot
    if n % 2:
        raise ValueError(f"mixing needs pairs, got {n} images")
    by_box = torch.full((n,), mixing.cutmix > 0, device=images.device)
    if mixing.mixup and mixing.cutmix:
        by_box = draws.bernoulli("which", 0.5)
    kept, share = images.new_ones(n, 1, 1, 1), images.new_ones(n)
    if mixing.mixup:
        share = draws.beta("mixup", mixing.mixup, mixing.mixup).to(images.dtype)
        kept = share[:, None, None, None]
    if mixing.cutmix:
        boxes = cutmix_boxes(draws, height, width, draws.beta("cutmix", mixing.cutmix, mixing.cutmix))
        outside = 1.0 - within(boxes, height, width).to(images.dtype)
        left = 1.0 - boxes[:, 2] * boxes[:, 3] / (height * width)
        # lerp by weights instead of torch.where, which is slow on the CPU; lerp is exact at 0 and 1.
        chosen = by_box.to(images.dtype)[:, None, None, None]
        kept = chosen * outside + (1.0 - chosen) * kept
        share = torch.where(by_box, left.to(images.dtype), share)
    mixed = torch.lerp(_partners(images), images, kept)
    return mixed, share[:, None] * one_hot + (1.0 - share)[:, None] * _partners(one_hot)


def cutmix_boxes(draws: Draws, height: int, width: int, share: Tensor) -> Tensor:
    """int64 [N, 4] as top, left, height, width, as torchvision's CutMix cuts them; share: lambda [N]."""
    half = 0.5 * (1.0 - share).clamp(min=0.0).sqrt()
    sides = []
    for name, side in (("row", height), ("column", width)):
        centre, reach = draws.integers(name, side), (half * side).long()
        first, last = (centre - reach).clamp(min=0), (centre + reach).clamp(max=side)
        sides.append((first, last - first))
    (top, h), (left, w) = sides
    return torch.stack([top, left, h, w], 1)


def _partners(x: Tensor) -> Tensor:
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
