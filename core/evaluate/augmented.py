"""Training images as random crops: an epoch of them is a set like any other, so its features are extracted and cached like any other's.

A cache cannot hold features of views that change in every step. It can hold some epochs, through which a training then cycles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..draws import Draws
from ..images.images import Images
from ..views.augmentation import Augmentation
from ..views.view import Evaluation, View

# torchvision's RandomResizedCrop and the flip, which all published linear and attentive probes train with.
CROPS = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5}


class RandomCrops(Images):
    """Images whose picture i, in an epoch, is a random crop of picture i at the size of an evaluation's view, perhaps mirrored.

    The crop depends on the seed, the epoch and i alone, not on who reads it. It is resized as the view resizes.
    """

    def __init__(self, images: Images, view: Evaluation, *, seed: int, epoch: int) -> None:
        which, index = (torch.tensor(places) for places in images.places())
        super().__init__(
            images.uri,
            images.stores,
            which,
            index,
            labels=images.labels,
            classes=images.classes,
            domains=images.domains,
            domain_names=images.domain_names,
        )
        self.seed, self.epoch = seed, epoch
        self.crops = View(view.size, view.mean, view.std, Augmentation(**CROPS, interpolation=view.interpolation))

    def read(self, i: int) -> Tensor:
        """uint8 or uint16 [C, size, size]."""
        position = torch.tensor([self.epoch * len(self) + i])
        return self.crops.crop_each([super().read(i)], Draws(self.seed, position, "probe/"))[0]

    def uniform(self) -> None:
        """No rows are read in one piece: each picture is cropped by itself."""

    def describe(self, view: Evaluation) -> dict[str, Any]:
        """All that decides what the crops show, as plain JSON; `view` normalises them."""
        drawn = {"class": type(self).__qualname__, "seed": self.seed, "epoch": self.epoch}
        return {**drawn, **{key: list(v) if isinstance(v, tuple) else v for key, v in CROPS.items()}, **view.describe()}
