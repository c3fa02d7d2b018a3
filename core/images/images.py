"""Images: the image set that every stage reads, whatever its source.

An Images is a selection from one or several stores; selecting copies indices, never pixels. Labels can be absent: for unlabelled
roles they are dropped when the set is opened, so that they cannot leak.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .groups import units_of
from .notes import Note
from .store import Scale, Stamp, Store, Uniform


class Images:
    """N images from one or several stores.

    uri: the opened URI. classes: class names by label, if known. labels: int64 [N], or uint8 [N, K] where an image may have several
    classes, or none (several.py); None if there are none or they must not be used. domains: int64 [N], indices into domain_names (one
    domain for each URI of a union, or the source's own domains). groups: int64 [N], what splits must not tear (groups.py), or None.
    notes: what the sources hold beside the images that are read. folders: the folders that were listed.
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
        groups: Tensor | None = None,
        notes: tuple[Note, ...] = (),
        folders: tuple[str, ...] = (),
    ) -> None:
        """Image i is number index[i] of stores[which[i]]; which, index: int64 [N]."""
        self.uri, self.classes, self.labels = uri, classes, labels
        self.domains, self.domain_names, self.groups = domains, domain_names, groups
        self.notes, self.folders = notes, folders
        self._stores, self._which, self._index = tuple(stores), which, index
        self._shared: tuple[Uniform | None] | tuple[()] = ()

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"Images({self.uri!r}, {len(self)} pictures)"

    def at(self, i: int) -> tuple[Store, int]:
        """The store of image i, and its number there."""
        if not 0 <= i < len(self):
            raise IndexError(f"picture {i} of {len(self)}")
        return self._stores[int(self._which[i])], int(self._index[i])

    @property
    def stores(self) -> tuple[Store, ...]:
        """The stores that images come from."""
        return self._stores

    def is_whole(self) -> bool:
        """Whether these are all images of all stores, one store after the other."""
        sizes = [len(store) for store in self._stores]
        which = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        index = torch.cat([torch.arange(size) for size in sizes])
        return torch.equal(which, self._which) and torch.equal(index, self._index)

    def places(self) -> list[list[int]]:
        """[numbers of the stores, numbers within them], for each image."""
        return [self._which.tolist(), self._index.tolist()]

    def read(self, i: int) -> Tensor:
        """uint8 or uint16 [C, H, W]; gray as three equal channels. Raises DamagedImage, naming the file."""
        store, k = self.at(i)
        return store.read(k)

    def name(self, i: int) -> str:
        """Path inside the source (files), or the source's name with an index (arrays)."""
        store, k = self.at(i)
        return store.name(k)

    def full_name(self, i: int) -> str:
        """`name`; with its folder, archive or pack if several of them may hold an image of this name."""
        store, k = self.at(i)
        return store.full_name(k) if len(self._stores) > 1 or store.repeats() else store.name(k)

    def place(self, i: int) -> tuple[int, int]:
        """(number of the store, number within the store): unique for each image, also if names are equal."""
        return int(self._which[i]), int(self._index[i])

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        """A JPEG decoded at 1/s of its sides, s = scale(H, W) in 1, 2, 4, 8, and its full size (H, W).

        libjpeg computes 8/s of each block's 8 pixels (sides round up), which is cheaper, but gives other pixels than resizing.
        Images of other formats are read as by `read`. Raises DamagedImage, naming the file.
        """
        store, k = self.at(i)
        return store.read_scaled(k, scale)

    def encoded(self, i: int) -> bytes | bytearray | None:
        """The bytes of image i's file; None if the source holds pixels instead of files. Raises DamagedImage."""
        store, k = self.at(i)
        return store.encoded(k)

    def stamp(self, i: int) -> str:
        """What `fingerprint` hashes for image i, beside its class."""
        store, k = self.at(i)
        return store.stamp(k)

    def uniform(self) -> Uniform | None:
        """The shape (C, H, W) and dtype of all images if they are equal and no image needs decoding; else None."""
        if not self._shared:
            used = (
                set(self._which.unique().tolist()) if len(self._stores) > 1 and len(self) else range(len(self._stores))
            )
            kinds = {self._stores[s].uniform() for s in used}
            self._shared = (kinds.pop() if len(kinds) == 1 else None,)
        return self._shared[0]

    def rows(self, indices: Tensor) -> Tensor | None:
        """The images at `indices` (int64 [M]), uint8 or uint16 [M, C, H, W]; None if `uniform` is None.

        The same pixels as `read`. Raises DamagedImage if a record of a pack has changed.
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
            # by numpy: torch has no index assignment for uint16
            pixels.numpy()[mine.numpy()] = part.numpy()
        return pixels

    def resident(self) -> Tensor | None:
        """All images, uint8 or uint16 [N, C, H, W]; None if `uniform` is None."""
        return self.rows(torch.arange(len(self)))

    def in_storage_order(self) -> "Images":
        """The same images in the order in which they are stored on disk, one store after the other."""
        place = torch.empty(len(self), dtype=torch.int64)
        for s, store in enumerate(self._stores):
            mine = self._which == s
            place[mine] = store.layout(self._index[mine])
        return self.select(torch.from_numpy(np.lexsort((place.numpy(), self._which.numpy()))))

    def keys(self) -> Tensor:
        """int64 [N]: the identity of each image, the first 8 bytes of the sha256 of its file or array.

        Copies have equal identities; a blend of a digit has the digit's. Files are hashed once, then cached.
        """
        keys = torch.empty(len(self), dtype=torch.int64)
        for s, store in enumerate(self._stores):
            mine = self._which == s
            keys[mine] = store.keys()[self._index[mine]]
        return keys

    def units(self) -> Tensor:
        """int64 [N]: the smallest identity of what splits must keep together (`units_of`); `keys` if there are no groups."""
        return units_of(self.keys(), self.groups)

    def unreadable(self) -> list[int]:
        """Indices of the images whose files could not be read for their identity, which is a substitute then."""
        found: list[int] = []
        for s, store in enumerate(self._stores):
            if numbers := store.unreadable():
                mine = (self._which == s) & torch.isin(self._index, torch.tensor(list(numbers)))
                found += mine.nonzero().flatten().tolist()
        return sorted(found)

    def fingerprint(self, watch: Stamp = "size") -> str:
        """sha256 (hex) over sorted paths, sizes (for arrays: contents), class names and groups: identifies the current state of the set.

        watch: what else of each file counts: nothing (`size`), its time of change (`mtime`), or its bytes, all read anew (`content`).
        """
        labels = [""] * len(self)
        if self.labels is not None and self.classes is not None:
            labels = [self._named(label) for label in self.labels.tolist()]
        if self.groups is not None:  # they shape what is held out
            labels = [f"{label}\t{group}" for label, group in zip(labels, self.groups.tolist(), strict=True)]
        places = zip(self._which.tolist(), self._index.tolist(), labels, strict=True)
        more = {s: store.watched(watch) for s, store in enumerate(self._stores)} if watch != "size" else {}
        lines = [
            f"{self._stores[s].stamp(k)}\t{label}{more[s][k] if more else ''}\n".encode("utf-8", "surrogateescape")
            for s, k, label in places
        ]
        return hashlib.sha256(b"".join(sorted(lines))).hexdigest()

    def _named(self, label: int | list[int]) -> str:
        """The class of a label, or the list of classes of one that may have several, as a fingerprint has them."""
        assert self.classes is not None
        if isinstance(label, int):
            return self.classes[label]
        return json.dumps([name for name, there in zip(self.classes, label, strict=True) if there])

    def split_hash(self) -> str:
        """sha256 (hex) over the sorted identities: identifies the images, independent of their location."""
        ordered = self.keys().sort().values
        return hashlib.sha256(ordered.numpy().astype(">i8").tobytes()).hexdigest()

    def select(self, indices: Tensor) -> "Images":
        """The images at `indices` (int64 [M]), in that order."""
        return Images(
            self.uri,
            self._stores,
            self._which[indices],
            self._index[indices],
            labels=None if self.labels is None else self.labels[indices],
            classes=self.classes,
            domains=self.domains[indices],
            domain_names=self.domain_names,
            groups=None if self.groups is None else self.groups[indices],
            notes=self.notes,
            folders=self.folders,
        )

    def unlabelled(self) -> "Images":
        """The same images without labels. Class names stay, since they reveal no image's label."""
        everything = self.select(torch.arange(len(self)))
        everything.labels = None
        return everything
