"""Damaged images in training: each is replaced by the next readable one and reported; too many end the run.

Every way of reading a set replaces a damaged image by the same one, so that all ways give the same batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import UserError
from .open import DamagedImage, Images
from .store import Scale

NEIGHBOUR_TRIES = 16
_Read = TypeVar("_Read")


@dataclass
class Damage:
    """The damaged images found in training so far.

    limit: the tolerated fraction of a set; 0 tolerates none, any other number at least one image. names: full name by (set, store,
    number in the store), so that several sets can share one Damage and images with equal names count separately.
    """

    limit: float = 0.01
    names: dict[tuple[str, int, int], str] = field(default_factory=dict)
    report: Callable[[str], None] = print

    def note(self, images: Images, wanted: Tensor, read: Tensor) -> None:
        """Note the images of `wanted` that were replaced (`read` differs). Raises UserError if this set has too many."""
        if read is wanted:  # the usual case: nothing was replaced
            return
        replaced = wanted[wanted != read].tolist()
        if not replaced:
            return
        for index in replaced:
            key = (images.uri, *images.place(index))
            if key not in self.names:
                self.names[key] = images.full_name(index)
                self.report(f"damaged picture replaced by its neighbour: {self.names[key]}")
        of_this_set = [name for (uri, *_), name in self.names.items() if uri == images.uri]
        if len(of_this_set) > (max(1.0, self.limit * len(images)) if self.limit else 0.0):
            raise UserError(
                f"{len(of_this_set)} damaged pictures of {len(images)}, more than run.damaged allows ({self.limit:.1%}): "
                f"{', '.join(of_this_set[:5])}; `rootstock data URI` lists them all; repair or remove them, or raise run.damaged"
            )


def read_or_neighbour(images: Images, index: int) -> tuple[Tensor, int]:
    """Read an image, or the next one that is not damaged: (image, index that was read)."""
    return _first_readable(images, index, images.read)


def read_scaled_or_neighbour(images: Images, index: int, scale: Scale) -> tuple[Tensor, tuple[int, int], int]:
    """As `read_or_neighbour`, decoded scaled: (image, full size (H, W), index that was read)."""
    (picture, size), read = _first_readable(images, index, lambda candidate: images.read_scaled(candidate, scale))
    return picture, size, read


def _first_readable(images: Images, index: int, read: Callable[[int], _Read]) -> tuple[_Read, int]:
    tries = min(NEIGHBOUR_TRIES, len(images))
    last = None
    for offset in range(tries):
        candidate = (index + offset) % len(images)
        try:
            return read(candidate), candidate
        except DamagedImage as error:
            last = error
    raise UserError(f"{tries} damaged pictures in a row, the last: {last}; `rootstock data URI` lists them all")


def readable_neighbours(images: Images, readable: Tensor) -> Tensor:
    """The image that is shown in the place of each, as by `read_or_neighbour`, int64 [N]. readable: bool [N]. Raises UserError."""
    read = torch.arange(len(readable))
    for index in (~readable).nonzero()[:, 0].tolist():
        others = [(index + offset) % len(readable) for offset in range(min(NEIGHBOUR_TRIES, len(readable)))]
        shown = next((other for other in others if readable[other]), None)
        read[index] = read_or_neighbour(images, index)[1] if shown is None else shown  # which raises the error
    return read


def rows_or_neighbours(images: Images, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The images `wanted` (int64 [N]) of a uniform set, [N, C, H, W], and the indices that were read, int64 [N]."""
    try:
        pixels, read = images.rows(wanted), wanted
    except DamagedImage:  # at least one; reading the others again is rare enough
        pictures, numbers = zip(*(read_or_neighbour(images, index) for index in wanted.tolist()), strict=True)
        pixels, read = torch.stack(pictures), torch.tensor(numbers)
    assert pixels is not None, "only uniform sets have rows"
    return pixels, read
