"""Damaged pictures in training: replaced by a deterministic neighbour, counted, listed, and fatal when they are too many.

Whichever way a set is read, a damaged picture is replaced by the same one, so the ways still agree.
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
    """Damaged pictures met in training: each replaced by a neighbour, counted, listed; too many end the run.

    limit: the tolerated fraction of a set; 0 tolerates none, any other number at least one. names: by (set, store, number in
    it), so that two sets may share one Damage, and that two pictures of one name are two.
    """

    limit: float = 0.01
    names: dict[tuple[str, int, int], str] = field(default_factory=dict)
    report: Callable[[str], None] = print

    def note(self, images: Images, wanted: Tensor, read: Tensor) -> None:
        """Remember the pictures `wanted` that others were `read` for. Raises UserError if they are too many of this set."""
        if read is wanted:  # as nearly always, and then there is nothing to compare
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
                f"{', '.join(of_this_set[:5])}; `rootstock data URI` lists them all; mend or remove them, or raise run.damaged"
            )


def read_or_neighbour(images: Images, index: int) -> tuple[Tensor, int]:
    """The picture and the index that it was read from: `index` itself, or the next one that is not damaged."""
    return _first_readable(images, index, images.read)


def read_scaled_or_neighbour(images: Images, index: int, scale: Scale) -> tuple[Tensor, tuple[int, int], int]:
    """What `Images.read_scaled` says of `read_or_neighbour`'s picture, its full size (H, W) too, and that index."""
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


def rows_or_neighbours(images: Images, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The pictures `wanted` (int64 [N]) of a uniform set, [N, C, H, W], and the indices that they were read from, int64 [N]."""
    try:
        pixels, read = images.rows(wanted), wanted
    except DamagedImage:  # one of them at least; the others are read again, which is rare enough
        pictures, numbers = zip(*(read_or_neighbour(images, index) for index in wanted.tolist()), strict=True)
        pixels, read = torch.stack(pictures), torch.tensor(numbers)
    assert pixels is not None, "rows are asked of uniform sets alone"
    return pixels, read
