"""Images: what every stage reads pictures from, whatever they come from.

An Images is a selection out of one or several stores; selecting copies indices, never pixels. Labels are an attribute
that can be absent, and are dropped once, at the opening: what has no labels cannot leak them.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .store import Scale, Store, Uniform


class Images:
    """N pictures out of one or several stores.

    uri: what was opened. classes: names by label, where known. labels: int64 [N], or None where there are none or they
    must not be seen. domains: int64 [N], indices into domain_names (one a URI of a union, or what the source says).
    """

    def __init__(
        self,
        uri: str,
        stores: Sequence[Store],
        which: Tensor,
        index: Tensor,
        *,
        labels: Tensor | None,
        classes: tuple[str, ...] | None,
        domains: Tensor,
        domain_names: tuple[str, ...],
    ) -> None:
        """Picture i is number index[i] (int64 [N]) of stores[which[i]]."""
        self.uri, self.classes, self.labels = uri, classes, labels
        self.domains, self.domain_names = domains, domain_names
        self._stores, self._which, self._index = tuple(stores), which, index
        self._shared: tuple[Uniform | None] | tuple[()] = ()

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"Images({self.uri!r}, {len(self)} pictures)"

    def _at(self, i: int) -> tuple[Store, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"picture {i} of {len(self)}")
        return self._stores[int(self._which[i])], int(self._index[i])

    def read(self, i: int) -> Tensor:
        """uint8 or uint16 [C, H, W]; gray as three equal channels. Raises DamagedImage, which names the file."""
        store, k = self._at(i)
        return store.read(k)

    def name(self, i: int) -> str:
        """Path inside the source (files), or the source's name with an index (arrays)."""
        store, k = self._at(i)
        return store.name(k)

    def full_name(self, i: int) -> str:
        """`name`, or where several folders, archives or packs may hold one of that name, one that tells which it is."""
        store, k = self._at(i)
        return store.full_name(k) if len(self._stores) > 1 or store.repeats() else store.name(k)

    def place(self, i: int) -> tuple[int, int]:
        """(number of its store, number in it): another one for each picture, whatever the pictures are called."""
        return int(self._which[i]), int(self._index[i])

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        """Picture i decoded at 1/s, and its full size (H, W), where scale(H, W) = s is 1, 2, 4 or 8 and the file is a JPEG.

        libjpeg then computes 8/s of each block's 8 pixels (sides round up): cheaper, but not the pixels of a resize.
        Whatever else is read as by `read`. Raises DamagedImage, which names the file.
        """
        store, k = self._at(i)
        return store.read_scaled(k, scale)

    def encoded(self, i: int) -> bytes | bytearray | None:
        """The bytes of picture i's file; None where it lies there as bare pixels. Raises DamagedImage."""
        store, k = self._at(i)
        return store.encoded(k)

    def stamp(self, i: int) -> str:
        """What `fingerprint` hashes of picture i, besides its class."""
        store, k = self._at(i)
        return store.stamp(k)

    def uniform(self) -> Uniform | None:
        """(shape (C, H, W), dtype) if all pictures have one and their pixels lie ready without decoding; else None."""
        if not self._shared:
            used = (
                set(self._which.unique().tolist()) if len(self._stores) > 1 and len(self) else range(len(self._stores))
            )
            kinds = {self._stores[s].uniform() for s in used}
            self._shared = (kinds.pop() if len(kinds) == 1 else None,)
        return self._shared[0]

    def rows(self, indices: Tensor) -> Tensor | None:
        """The pictures at `indices` (int64 [M]), uint8 or uint16 [M, C, H, W], where `uniform` is not None; else None.

        The same pixels as `read`. Raises DamagedImage where a pack's record is not what was written.
        """
        uniform = self.uniform()
        if uniform is None:
            return None
        if len(self._stores) == 1:
            return self._stores[0].rows(self._index.index_select(0, indices))
        which, index = self._which[indices], self._index[indices]
        pixels = torch.empty(len(indices), *uniform.shape, dtype=uniform.dtype)
        for s in which.unique().tolist():
            mine = (which == s).nonzero().flatten()
            part = self._stores[s].rows(index[mine])
            assert part is not None
            # through numpy: torch cannot put uint16 by index
            pixels.numpy()[mine.numpy()] = part.numpy()
        return pixels

    def resident(self) -> Tensor | None:
        """All pictures, uint8 or uint16 [N, C, H, W], where `uniform` is not None; else None."""
        return self.rows(torch.arange(len(self)))

    def in_storage_order(self) -> "Images":
        """The same pictures in the order in which they lie on the disk, one store after the other."""
        place = torch.empty(len(self), dtype=torch.int64)
        for s, store in enumerate(self._stores):
            mine = self._which == s
            place[mine] = store.layout(self._index[mine])
        return self.select(torch.from_numpy(np.lexsort((place.numpy(), self._which.numpy()))))

    def keys(self) -> Tensor:
        """int64 [N]: the identity of each picture, the first 8 bytes of the sha256 of its file or array.

        Copies share one; blends of a digit share that of the digit. Files are hashed once and remembered in the cache.
        """
        keys = torch.empty(len(self), dtype=torch.int64)
        for s, store in enumerate(self._stores):
            mine = self._which == s
            keys[mine] = store.keys()[self._index[mine]]
        return keys

    def unreadable(self) -> list[int]:
        """The pictures whose files could not be read when their identities were taken: these are made up."""
        found: list[int] = []
        for s, store in enumerate(self._stores):
            if numbers := store.unreadable():
                mine = (self._which == s) & torch.isin(self._index, torch.tensor(list(numbers)))
                found += mine.nonzero().flatten().tolist()
        return sorted(found)

    def fingerprint(self) -> str:
        """sha256 (hex) over sorted paths, sizes (arrays: contents) and class names: the data set as it is now."""
        labels = [""] * len(self)
        if self.labels is not None and self.classes is not None:
            labels = [self.classes[label] for label in self.labels.tolist()]
        places = zip(self._which.tolist(), self._index.tolist(), labels, strict=True)
        lines = [f"{self._stores[s].stamp(k)}\t{label}\n".encode("utf-8", "surrogateescape") for s, k, label in places]
        return hashlib.sha256(b"".join(sorted(lines))).hexdigest()

    def split_hash(self) -> str:
        """sha256 (hex) over the sorted identities: which pictures these are, wherever they lie."""
        ordered = self.keys().sort().values
        return hashlib.sha256(ordered.numpy().astype(">i8").tobytes()).hexdigest()

    def select(self, indices: Tensor) -> "Images":
        """The pictures at `indices` (int64 [M]), in that order."""
        return Images(
            self.uri,
            self._stores,
            self._which[indices],
            self._index[indices],
            labels=None if self.labels is None else self.labels[indices],
            classes=self.classes,
            domains=self.domains[indices],
            domain_names=self.domain_names,
        )

    def unlabelled(self) -> "Images":
        """The same pictures without labels. The names of the classes stay: they give no picture's label away."""
        everything = self.select(torch.arange(len(self)))
        everything.labels = None
        return everything
