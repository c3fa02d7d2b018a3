"""A set whose pictures are corrupted after the crop of evaluation (core/views/corruptions.py), for tests of robustness.

The corruption is a part of the data: it depends on the picture's content alone, not on the seed, the order or the set. So a target and
a test that hold the same picture show it with the same noise, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from ..images.images import Images
from ..images.store import Scale, Stamp, Store, Uniform
from .corruptions import SEVERITIES, Table, corrupt
from .view import Evaluation

CorruptionName = Literal[
    "gaussian_noise", "defocus_blur", "brightness", "contrast", "jpeg_compression", "rotation", "scale", "occlusion", "clutter"
]  # fmt: skip


class Corruption(NamedTuple):
    """One corruption at one severity."""

    name: str
    severity: int
    table: Table

    def check(self) -> None:
        """Raises UserError for a severity out of its range."""
        if self.severity not in SEVERITIES:
            raise UserError(f"data.corrupt.severity: expected 1 to 5, got {self.severity}; 5 is the strongest")


def corruption_options(
    *, name: CorruptionName, severity: int = 5, table: Table = "imagenet", size: int | None = None
) -> None:
    """The `data.corrupt` section.

    name: The corruption: five of ImageNet-C (Hendrycks & Dietterich 2019, arXiv:1903.12261), and rotation (10, 20, 30, 45, 60 degrees),
        scale (1.15 to 2 times as large or as small), occlusion (a gray rectangle over 10 to 50 % of the picture) or clutter (4 to 24 bars).
    severity: Its strength, 1 to 5.
    table: Whose constants: imagenet, of ImageNet-C's pictures of 224 pixels, or cifar, of CIFAR-10-C's of 32. The other four have the same
        in both.
    size: Pixels of the side at which pictures are corrupted, before the view of evaluation resizes them; null takes data.size. Those
        of `cifar` are for 32, also where a network sees pictures enlarged.
    """


def view_before(size: int | None, view: Evaluation) -> Evaluation:
    """The view that cuts pictures before they are corrupted: that of evaluation, or one of `size` pixels, which that one resizes.

    Raises UserError.
    """
    if size is None or size == view.size:
        return view
    if size < 1:
        raise UserError(f"data.corrupt.size: expected at least 1 pixel, got {size}; null takes data.size")
    return Evaluation(size, interpolation=view.interpolation)


def corrupted(images: Images, corruption: Corruption, view: Evaluation) -> Images:
    """The same images, corrupted; identities, labels and order stay. view: cuts them first (`view_before`), so they have its size."""
    which, index = (torch.tensor(places) for places in images.places())
    return Images(
        images.uri,
        [CorruptedStore(store, corruption, view) for store in images.stores],
        which,
        index,
        labels=images.labels,
        classes=images.classes,
        domains=images.domains,
        domain_names=images.domain_names,
        groups=images.groups,
        notes=images.notes,
        folders=images.folders,
    )


class CorruptedStore:
    """The pictures of a store, cut by a view of evaluation and corrupted: uint8 [C, size, size]."""

    def __init__(self, store: Store, corruption: Corruption, view: Evaluation) -> None:
        self.store, self.corruption, self.view = store, corruption, view

    def __len__(self) -> int:
        return len(self.store)

    def read(self, i: int) -> Tensor:
        return self._corrupted(self.view.worker(self.store.read(i))[None], torch.tensor([i]))[0]

    def rows(self, indices: Tensor) -> Tensor | None:
        pixels = self.store.rows(indices)
        if pixels is None:
            return None
        return self._corrupted(torch.stack([self.view.worker(picture) for picture in pixels]), indices)

    def _corrupted(self, images: Tensor, indices: Tensor) -> Tensor:
        name, severity, table = self.corruption
        return corrupt(images, Draws(0, self.store.keys()[indices], f"{name}/{severity}/"), name, severity, table)

    def uniform(self) -> Uniform | None:
        whole = self.store.uniform()
        return None if whole is None else whole._replace(shape=(whole.shape[0], self.view.size, self.view.size))

    def stamp(self, i: int) -> str:
        return "\t".join([self.store.stamp(i), *map(str, self.corruption), str(self.view.size), str(self.view.short)])

    def name(self, i: int) -> str:
        return self.store.name(i)

    def full_name(self, i: int) -> str:
        return self.store.full_name(i)

    def repeats(self) -> bool:
        return self.store.repeats()

    def keys(self) -> Tensor:
        """Those of the pictures without corruption, so that a picture is known wherever it is seen."""
        return self.store.keys()

    def unreadable(self) -> Collection[int]:
        return self.store.unreadable()

    def watched(self, watch: Stamp) -> Sequence[str]:
        return self.store.watched(watch)

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        return self.read(i), (self.view.size, self.view.size)

    def encoded(self, i: int) -> None:
        return None

    def layout(self, indices: Tensor) -> Tensor:
        return self.store.layout(indices)
