"""What a source of pictures has to offer, whatever lies underneath: arrays, files, members of an archive.

A Store knows pixels and identities and nothing of labels; a Source adds what its layout says about them. Selection,
unions and roles happen above (source.py), so that no store has to implement them.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError


class DamagedImage(UserError):
    """A picture that cannot be read; the message names the file and says why."""


class Store(Protocol):
    """N pictures with random access. Must pickle, and must work in several processes at once."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> Tensor:
        """uint8 or uint16 [C, H, W]; gray as three equal channels. Raises DamagedImage."""
        ...

    def name(self, i: int) -> str: ...

    def keys(self) -> Tensor:
        """int64 [N]: identity of each picture, the first 8 bytes of a sha256."""
        ...

    def stamp(self, i: int) -> str:
        """What `fingerprint` hashes: path and size, or the contents where they are cheap."""
        ...

    def resident(self, indices: Tensor) -> Tensor | None:
        """[len(indices), C, H, W] where all pictures have one shape and live in memory anyway."""
        ...


@dataclass(frozen=True)
class Source:
    """What a scheme's opener returns.

    labels: int64 [N], indices into `classes`. splits: the source's own splits, name to int64 indices.
    domains: int64 [N] into `domain_names`, only where the source itself tells domains apart.
    """

    store: Store
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    splits: Mapping[str, Tensor] = field(default_factory=dict)
    domains: Tensor | None = None
    domain_names: tuple[str, ...] = ()


def sha256_key(content: bytes | memoryview) -> int:
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

    def keys(self) -> Tensor:
        if self._keys is None:
            rows = np.ascontiguousarray(self.pixels.numpy())
            self._keys = torch.tensor([sha256_key(row.tobytes()) for row in rows], dtype=torch.int64)
        return self._keys

    def stamp(self, i: int) -> str:
        return f"{i}\t{self.keys()[i].item()}"

    def resident(self, indices: Tensor) -> Tensor:
        return three_channels(self.pixels[indices])
