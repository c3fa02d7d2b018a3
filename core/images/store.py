"""What a source of pictures has to offer, whatever lies underneath: arrays, files, members of an archive.

A Store knows pixels and identities and nothing of labels; a Source adds what its layout says about them. Selection,
unions and roles happen above (source.py), so that no store has to implement them.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError


class DamagedImage(UserError):
    """A picture that cannot be read; the message names the file and says why."""


Scale = Callable[[int, int], int]
"""(H, W) of a whole picture -> 1, 2, 4 or 8: into how many parts its sides may be scaled down on decoding."""


class Uniform(NamedTuple):
    """What all pictures of a set share: (C, H, W), and uint8 or uint16."""

    shape: tuple[int, int, int]
    dtype: torch.dtype


class Store(Protocol):
    """N pictures with random access. Must pickle, and must work in several processes at once."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> Tensor:
        """uint8 or uint16 [C, H, W]; gray as three equal channels. Raises DamagedImage."""
        ...

    def name(self, i: int) -> str: ...

    def full_name(self, i: int) -> str:
        """A name that tells the folder, archive or pack, and that no other picture of this store or of other stores has."""
        ...

    def repeats(self) -> bool:
        """Whether several of its pictures may have one `name`."""
        ...

    def keys(self) -> Tensor:
        """int64 [N]: identity of each picture, the first 8 bytes of a sha256."""
        ...

    def unreadable(self) -> Collection[int]:
        """The pictures whose identity `keys` had to make up, for want of their bytes."""
        ...

    def stamp(self, i: int) -> str:
        """What `fingerprint` hashes: path and size, or the contents where they are cheap."""
        ...

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        """Like `read`, decoded at 1/scale(H, W) where the format can; with the full size (H, W). Raises DamagedImage."""
        ...

    def encoded(self, i: int) -> bytes | bytearray | None:
        """The bytes of the picture's file; None where it lies there as bare pixels. Raises DamagedImage."""
        ...

    def uniform(self) -> Uniform | None:
        """The shape and type that all pictures share, where their pixels lie ready, without decoding; else None."""
        ...

    def rows(self, indices: Tensor) -> Tensor | None:
        """[len(indices), C, H, W] with the pixels of `read`, where `uniform` is not None; else None.

        Raises DamagedImage where a stored picture is not what was written.
        """
        ...

    def layout(self, indices: Tensor) -> Tensor:
        """int64 [len(indices)]: where each picture lies; reading in ascending order reads the disk forwards."""
        ...


@dataclass(frozen=True)
class Source:
    """What a scheme's opener returns.

    labels: int64 [N], indices into `classes`. splits: the source's own splits, name to int64 indices.
    domains: int64 [N] into `domain_names`, only where the source itself tells domains apart; else `domain_names` may hold
    the one name that all pictures go by, instead of one made from the URI.
    """

    store: Store
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    splits: Mapping[str, Tensor] = field(default_factory=dict)
    domains: Tensor | None = None
    domain_names: tuple[str, ...] = ()


def sha256_key(content: bytes | bytearray | memoryview) -> int:
    """The first 8 bytes of the sha256 as a signed 64-bit integer, so that it fits a torch tensor."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True)


def three_channels(image: Tensor) -> Tensor:
    """[..., 1, H, W] -> [..., 3, H, W] with equal channels; any other number of channels stays."""
    return image.expand(*image.shape[:-3], 3, *image.shape[-2:]).contiguous() if image.shape[-3] == 1 else image


def number_classes(names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Class names, one an image -> (int64 [N], the sorted classes). Whole numbers sort as numbers."""
    unique = set(names)
    as_numbers = all(re.fullmatch("-?[0-9]+", name) for name in unique)
    classes = tuple(sorted(unique, key=lambda name: (int(name), name)) if as_numbers else sorted(unique))
    position = {name: k for k, name in enumerate(classes)}
    return torch.tensor([position[name] for name in names], dtype=torch.int64), classes


class ArrayStore:
    """Pictures of one shape in memory: uint8 or uint16 [N, C, H, W].

    An identity is the hash of one picture's own bytes in that layout, before gray becomes three channels.
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
