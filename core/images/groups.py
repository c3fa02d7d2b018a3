"""Groups of images that no split may tear: all pictures of a patient, all frames of a video.

A split moves whole units: what hangs together by a common group or by equal content. A unit is known by the smallest identity in it, so
that splits depend on content alone, as without groups, and groups of one image each change nothing.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from ..errors import UserError
from .places import abridged
from .store import sha256_key

NO_GROUP = 0
"""The group of an image that is a group of its own, in a union with a set that has groups."""

BY_FOLDER = "folder"
"""What `?group=` of sets in folders may say."""


def numbered_groups(names: Sequence[str]) -> Tensor:
    """int64 [N]: a hash of the name of each image's group; equal names are one group, in all sets of a union too."""
    numbers = {name: sha256_key(name.encode("utf-8", "surrogateescape")) for name in set(names)}
    return torch.tensor([numbers[name] for name in names], dtype=torch.int64)


def units_of(keys: Tensor, groups: Tensor | None) -> Tensor:
    """int64 [N]: the smallest identity of what cannot be torn: images of one group, copies of one image, and all that these link.

    keys: int64 [N], identities. groups: int64 [N], or None, which gives `keys`.
    """
    if groups is None or not len(keys):
        return keys
    _, copies = keys.unique(return_inverse=True)
    grouped = (groups != NO_GROUP).nonzero()[:, 0]
    _, members = groups[grouped].unique(return_inverse=True)
    units = keys
    while True:  # a step along each link; a copy in another group makes a chain of two
        before, units = units, units.clone()
        units[grouped] = smallest_within(units[grouped], members)
        units = smallest_within(units, copies)
        if torch.equal(units, before):
            return units


def smallest_within(values: Tensor, members: Tensor) -> Tensor:
    """int64 [N]: for each value the smallest of those with the same number in `members` (0 to K - 1)."""
    if not len(values):
        return values
    room = values.new_full((int(members.max()) + 1,), torch.iinfo(torch.int64).max)
    return room.scatter_reduce(0, members, values, "amin")[members]


def refuse_torn(splits: Mapping[str, Tensor], groups: Tensor | None, title: str) -> None:
    """Raises UserError if two of the set's own splits share a group. splits: name to int64 indices."""
    if groups is None:
        return
    for one, other in combinations(splits, 2):
        if number := int(torch.isin(groups[splits[one]], groups[splits[other]]).sum()):
            raise UserError(
                f"{abridged(title)}: {number:,} pictures of its split {abridged(one, 60)} are of groups that {abridged(other, 60)} has "
                "too; cut parts of all instead, such as #all[:80%], or leave ?group= out"
            )


def groups_below(folders: Sequence[str], names: Sequence[str], title: str) -> Tensor:
    """The groups of images in folders, for ?group=folder: the folder below the class; of one name in several classes it is one group.

    folders: of each image, below its class. Raises UserError for an image that lies in none.
    """
    if "" in folders:
        raise UserError(
            f"{title}: group=folder needs a folder for each group inside the folders of the classes, and "
            f"{abridged(names[folders.index('')])} lies in none; move it into one, or leave ?group= out"
        )
    return numbered_groups(folders)
