"""The sets that `rootstock try` is given: which of them trains without labels, which is measured on, and which is adapted to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from ...core.errors import UserError
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.places import abridged, uri_path
from ...core.images.several import has_several
from ..following import command
from ..settle import shorter_sides

SIZES_TOLD = 32  # pictures whose sizes are told
FEWEST_PICTURES = 60  # labelled pictures, and pictures of a target
MOST_SETS = 3


class GivenSet(NamedTuple):
    """One set. images: opened with what labels it has. labelled: whether it has them."""

    uri: str
    images: Images
    labelled: bool

    def words(self) -> str:
        """ "600 pictures of 120 to 500 px without labels in folder:u"."""
        sides = sorted(shorter_sides(self.images, SIZES_TOLD))
        if not sides:
            raise UserError(
                f"{self.uri}: none of the pictures that were looked at can be read; give a folder of pictures"
            )
        size = f"{sides[0]} px" if sides[0] == sides[-1] else f"{sides[0]} to {sides[-1]} px"
        classes = f"{len(self.images.classes or ())} classes" if self.labelled else "no labels"
        return f"{len(self.images)} pictures of {size}, {classes}, in {self.uri}"


class Roles(NamedTuple):
    """unlabelled: sets without labels before the labelled one. labelled: on which features are measured, and from which is adapted.
    target: to which. None where there is none.
    """

    unlabelled: GivenSet | None
    labelled: GivenSet | None
    target: GivenSet | None

    @property
    def all(self) -> list[GivenSet]:
        return [one for one in self if one is not None]


def read_roles(uris: Sequence[str]) -> Roles:
    """The roles by order: pictures without labels first, then labelled ones, then a second domain, with or without labels.

    A path that is no URI is that of a folder. Raises UserError.
    """
    if not 1 <= len(uris) <= MOST_SETS:
        raise UserError(
            f"try takes 1 to {MOST_SETS} sets, got {len(uris)}: pictures without labels, labelled pictures, pictures of another domain"
        )
    sets = [_given(uri) for uri in uris]
    unlabelled = None if sets[0].labelled else sets.pop(0)
    labelled = sets.pop(0) if sets else None
    if labelled is not None and not labelled.labelled:
        raise UserError(
            f"{labelled.uri} has no labels, and nor has the set before it; give pictures in class folders in its place, to measure on"
        )
    target = sets.pop(0) if sets else None
    if sets:
        raise UserError(
            f"try takes one labelled set and one of another domain, and {sets[0].uri} is a third; several folders of one kind are one "
            "set as csv:FILE"
        )
    for one, what in ((labelled, "labelled pictures"), (target, "pictures of another domain")):
        if one is not None and len(one.images) < FEWEST_PICTURES:
            raise UserError(
                f"{one.uri}: {len(one.images)} {what} are too few to measure anything; give at least {FEWEST_PICTURES}"
            )
    return Roles(unlabelled, labelled, target)


def _folder_uri(path: str) -> str:
    """Raises UserError for a name that no URI can hold."""
    reasons = {
        "a blank at its end": path != path.rstrip(),
        "{seed} in its path": "{seed}" in path,
        "bytes in its path that are no UTF-8": path.encode(errors="replace").decode() != path,
    }
    if wrong := [reason for reason, holds in reasons.items() if holds]:
        raise UserError(
            f"{abridged(path)}: a URI cannot name a folder with {wrong[0]}; rename it, or give a link to it"
        )
    return f"folder:{uri_path(path)}"


def _given(uri: str) -> GivenSet:
    if os.path.isdir(os.path.expanduser(uri)):
        uri = _folder_uri(uri)
    images = open_images(uri, role="test")
    if has_several(images.labels):
        given = f"data.train={uri}"
        raise UserError(
            f"{uri}: a picture may have several classes there, and try compares accuracies of one; use "
            f"{command('pretrain', 'small', given)}, then {command('probe', 'small', given, 'backbone.weights=runs/small_pretrained')}"
        )
    labelled = images.labels is not None and images.classes is not None and len(images.classes) > 1
    return GivenSet(uri, images, labelled)
