"""The interface of every source of images: arrays, files, members of an archive.

A Store has pixels and identities, but no labels; a Source adds the labels and splits that its layout defines. Selections, unions and
roles are done above (open.py), so that no store has to implement them.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .notes import Note


class DamagedImage(UserError):
    """An image that cannot be read; the message names the file and the reason."""


Stamp = Literal["size", "mtime", "content"]
"""How a set is watched for changes: by names and sizes, by times of change too, or by the bytes."""

Scale = Callable[[int, int], int]
"""Full size (H, W) of an image -> s in 1, 2, 4, 8: the image may be decoded at 1/s of its sides."""


class Uniform(NamedTuple):
    """The shape (C, H, W) and dtype (uint8 or uint16) that all images of a set share."""

    shape: tuple[int, int, int]
    dtype: torch.dtype


class Store(Protocol):
    """N images with random access. Must be picklable and usable in several processes at once."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> Tensor:
        """uint8 or uint16 [C, H, W]; gray as three equal channels. Raises DamagedImage."""
        ...

    def name(self, i: int) -> str: ...

    def full_name(self, i: int) -> str:
        """A name that includes the folder, archive or pack, unique among all images of all stores."""
        ...

    def repeats(self) -> bool:
        """Whether several images may have the same `name`."""
        ...

    def keys(self) -> Tensor:
        """int64 [N]: the identity of each image, the first 8 bytes of a sha256."""
        ...

    def unreadable(self) -> Collection[int]:
        """The images whose bytes could not be read, so that `keys` has a substitute for their identity."""
        ...

    def stamp(self, i: int) -> str:
        """What `fingerprint` hashes: path and size, or the content if that is cheap."""
        ...

    def watched(self, watch: Stamp) -> Sequence[str]:
        """[N] what a watch by time of change or by content sees of each image beside its `stamp`; "" where nothing is added to it."""
        ...

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        """Like `read`, decoded at 1/scale(H, W) if the format can; and the full size (H, W). Raises DamagedImage."""
        ...

    def encoded(self, i: int) -> bytes | bytearray | None:
        """The bytes of the image's file; None if the store holds pixels instead. Raises DamagedImage."""
        ...

    def uniform(self) -> Uniform | None:
        """The shape and dtype of all images, if they are equal and no image needs decoding; else None."""
        ...

    def rows(self, indices: Tensor) -> Tensor | None:
        """[len(indices), C, H, W] with the pixels of `read`; None if `uniform` is None.

        Raises DamagedImage if a stored image has changed.
        """
        ...

    def layout(self, indices: Tensor) -> Tensor:
        """int64 [len(indices)]: the place of each image on disk; reading in ascending order reads forwards."""
        ...


@dataclass(frozen=True)
class Source:
    """What the opener of a URI scheme returns.

    labels: int64 [N], indices into `classes`, or uint8 [N, K] (several.py). splits: the source's own splits, name to int64 indices.
    domains: int64 [N], indices into `domain_names`, only if the source itself has domains; else `domain_names` may hold one name for
    all images, which replaces the name made from the URI. groups: int64 [N], as of `Images`. notes: what was passed over. folder: the
    folder that was listed, if one was. uncut: why `#train` and `#test` may not be parts of all images where it has no splits: names in it
    say splits that it could not make; "" if they may.
    """

    store: Store
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    splits: Mapping[str, Tensor] = field(default_factory=dict)
    domains: Tensor | None = None
    domain_names: tuple[str, ...] = ()
    groups: Tensor | None = None
    notes: tuple[Note, ...] = ()
    folder: str | None = None
    uncut: str = ""


def sha256_key(content: bytes | bytearray | memoryview) -> int:
    """The first 8 bytes of the sha256 as a signed 64-bit integer, so that it fits a torch tensor."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True)


def three_channels(image: Tensor) -> Tensor:
    """[..., 1, H, W] -> [..., 3, H, W] with equal channels; other numbers of channels stay."""
    return image.expand(*image.shape[:-3], 3, *image.shape[-2:]).contiguous() if image.shape[-3] == 1 else image


def number_classes(names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """The class name of each image -> (labels int64 [N], sorted class names). Whole numbers are sorted as numbers."""
    unique = set(names)
    as_numbers = all(re.fullmatch("-?[0-9]{1,1000}", name) for name in unique)
    classes = tuple(sorted(unique, key=lambda name: (int(name), name)) if as_numbers else sorted(unique))
    position = {name: k for k, name in enumerate(classes)}
    return torch.tensor([position[name] for name in names], dtype=torch.int64), classes


class ArrayStore:
    """Images of one shape in memory: uint8 or uint16 [N, C, H, W].

    An image's identity is the hash of its bytes in that layout, before gray becomes three channels.
    """

    def __init__(self, pixels: Tensor, title: str) -> None:
        self.pixels = pixels
        self.title = title
        self._keys: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, i: int) -> Tensor:
        return three_channels(self.pixels[i]).clone()

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"

    def full_name(self, i: int) -> str:
        return self.name(i)

    def repeats(self) -> bool:
        return False

    def keys(self) -> Tensor:
        if self._keys is None:
            rows = np.ascontiguousarray(self.pixels.numpy())
            self._keys = torch.tensor([sha256_key(row.tobytes()) for row in rows], dtype=torch.int64)
        return self._keys

    def unreadable(self) -> Collection[int]:
        return ()

    def stamp(self, i: int) -> str:
        return f"{i}\t{self.keys()[i].item()}"

    def watched(self, watch: Stamp) -> Sequence[str]:
        return [""] * len(self)  # the stamp has the content already

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        return self.read(i), (self.pixels.shape[2], self.pixels.shape[3])

    def encoded(self, i: int) -> None:
        return None

    def uniform(self) -> Uniform:
        _, channels, height, width = self.pixels.shape
        return Uniform((3 if channels == 1 else channels, height, width), self.pixels.dtype)

    def rows(self, indices: Tensor) -> Tensor:
        if self.pixels.dtype == torch.uint8:
            return three_channels(self.pixels.index_select(0, indices))
        return three_channels(self.pixels[indices])  # torch has no index_select of uint16

    def layout(self, indices: Tensor) -> Tensor:
        return indices
