"""Decoded pictures that are kept in memory: small pictures are then decoded once, not once an epoch."""

from __future__ import annotations

from torch import Tensor

from ..hostmemory import available
from ..images.damage import read_or_neighbour
from ..images.open import Images

_SHARE = 4  # at most a fourth of the memory that is available when the training begins


def room_for_decoded(limit: int, loading: int) -> int:
    """Bytes of decoded pictures that each of `loading` processes may keep. limit: of all of them, for one set."""
    free = available()
    return (limit if free is None else min(limit, free // _SHARE)) // max(1, loading)


class DecodedPictures:
    """The pictures of a set as they are read, the first ones kept until `room` bytes are full.

    No picture makes room for another: in a training each is asked for as often as any other, so the share of pictures that need no decoding
    is largest if those that are kept stay. They are the very tensors that were decoded, so nothing may write into one.
    """

    def __init__(self, images: Images, room: int) -> None:
        self.images, self.room = images, room
        self._kept: dict[int, Tensor] = {}

    def read(self, index: int) -> tuple[Tensor, int]:
        """As `read_or_neighbour`: image [C, H, W] and the index that was read. A damaged picture is looked at anew each time."""
        if (known := self._kept.get(index)) is not None:
            return known, index
        picture, read = read_or_neighbour(self.images, index)
        size = picture.untyped_storage().nbytes()
        if read == index and size <= self.room:
            self._kept[index] = picture
            self.room -= size
        return picture, read
