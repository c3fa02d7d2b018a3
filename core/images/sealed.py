"""A labelled test set without its labels, until it is opened."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import UserError
from .images import Images
from .store import Stamp


class SealedImages(Images):
    """The images of a labelled set. The labels are not in memory: `unsealed` opens the set once more.

    They are read when the set is sealed too, for its fingerprint, which they are a part of, and so that a set that cannot be
    opened is refused before any training; then they are dropped.
    """

    def __init__(
        self, open_labelled: Callable[[], Images], stamp: Stamp = "size", part_of: Callable[[], Images] | None = None
    ) -> None:
        """open_labelled: opens the set, always the same images in the same order. stamp: how the run watches it for changes.

        part_of: opens the set of which each seed draws another part. Looks are then counted at that one, since ten seeds see most of
        its labels.
        """
        found = open_labelled()
        super().__init__(
            found.uri,
            found._stores,
            found._which,
            found._index,
            labels=None,
            classes=found.classes,
            domains=found.domains,
            domain_names=found.domain_names,
            groups=found.groups,
            notes=found.notes,
            folders=found.folders,
        )
        self._open = open_labelled
        self.looked_at = self.split_hash() if part_of is None else part_of().split_hash()
        kinds: tuple[Stamp, ...] = ("size", stamp)
        self._prints = {kind: found.fingerprint(kind) for kind in dict.fromkeys(kinds)}

    def fingerprint(self, watch: Stamp = "size") -> str:
        """That of the labelled set when it was sealed. watch: "size", or the stamp that it was sealed with."""
        return self._prints[watch]

    def unsealed(self) -> Images:
        """The same images with their labels. Only core/evaluate/sealed.py calls it, which counts.

        Raises UserError if the set cannot be opened any more, or holds other images.
        """
        found = self._open()
        if len(found) != len(self) or not torch.equal(found.keys(), self.keys()):
            raise UserError(
                f"{self.uri} holds other images than when the run began, so its labels are not read; restore it and run again"
            )
        return found
