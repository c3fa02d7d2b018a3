"""The slice of a training set that every choice (k, C, a learning rate) is made on, and copies of one picture.

The slice is drawn over identities (`Images.keys`), not over rows. Otherwise a held-out image would have a copy, or another blend of the
same digit, among the images that were fitted, and what memorises best would win.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ..images.images import Images
from ..images.several import has_several, numbered_sets
from ..images.split import hash_order, keys_by_class

# The part of the training set that is held out, of each class.
CHOICE_FRACTION = 0.2
HOW_DRAWN = "over content keys, stratified by a key's majority class"
HOW_DRAWN_OF_SEVERAL = "over content keys, stratified by the rarest of a key's classes"
WHOLE_GROUPS = "; groups stay whole and count as one key"


def held_out_rows(keys: Tensor, labels: Tensor, *, seed: int, fraction: float = CHOICE_FRACTION) -> Tensor:
    """Which training images to hold out, bool [N] on the CPU: `fraction` of the identities of each class, rounded, but at least one.

    keys, labels: int64 [N]; keys are identities, or `Images.units` of a set with groups. All images of an identity are on one side; its
    class is the one that most of them have, of equals the smallest.
    Labels may be uint8 [N, K]; then its class is the rarest that it has.
    A class with a single identity stays in training. The choice depends on the seed and on the identities, not on order or copies.
    """
    if keys.ndim != 1 or labels.shape[:1] != keys.shape or labels.ndim > 2:
        raise ValueError(f"keys {tuple(keys.shape)} and labels {tuple(labels.shape)} must be [N] and [N] or [N, K]")
    keys = keys.detach().cpu()
    chosen: list[int] = []
    for group in keys_by_class(keys, labels.detach().cpu()).values():
        count = min(max(1, round(fraction * len(group))), len(group) - 1)
        chosen += hash_order(group, seed)[len(group) - count :]
    return torch.isin(keys, torch.tensor(chosen, dtype=torch.int64))


def describe_slice(images: Images, seed: int, fraction: float = CHOICE_FRACTION) -> dict[str, Any]:
    """How the slice of a training set was drawn, and its size: the entry `held_out` of a result."""
    assert images.labels is not None
    keys = images.units()
    part = images.select(held_out_rows(keys, images.labels, seed=seed, fraction=fraction).nonzero()[:, 0])
    return {
        "drawn": (HOW_DRAWN_OF_SEVERAL if has_several(images.labels) else HOW_DRAWN)
        + (WHOLE_GROUPS if images.groups is not None else ""),
        "fraction": fraction,
        "seed": seed,
        "keys": len(part.units().unique()),
        "of_keys": len(keys.unique()),
        "images": len(part),
        "of_images": len(images),
        "split": part.split_hash(),
    }


def nothing_to_choose_on(keys: Tensor, labels: Tensor) -> bool:
    """Whether no class has two identities, so that no slice can be held out."""
    return all(len(group) < 2 for group in keys_by_class(keys.cpu(), labels.cpu()).values())


def distinct_rows(images: Images) -> Tensor:
    """The indices of the images without copies, int64 ascending: the first of those with equal identity, label and pixels.

    Blends of one digit have its identity but other pixels, so all of them stay. Only images whose identity occurs more than once are read.
    Raises DamagedImage for a copy that cannot be read.
    """
    keys = images.keys()
    _, group, sizes = keys.unique(return_inverse=True, return_counts=True)
    labels = torch.zeros(len(images), dtype=torch.int64) if images.labels is None else numbered_sets(images.labels)
    keep = torch.ones(len(images), dtype=torch.bool)
    rows = (sizes[group] > 1).nonzero()[:, 0]
    rows = rows[group[rows].argsort(stable=True)]
    for members in rows.split(sizes[sizes > 1].tolist()):
        seen: set[tuple[int, bytes]] = set()
        for i, content in zip(members.tolist(), _contents(images, members.tolist()), strict=True):
            keep[i] = (int(labels[i]), content) not in seen
            seen.add((int(labels[i]), content))
    return keep.nonzero()[:, 0]


def rows_by_name(images: Images, kept: Tensor) -> list[tuple[str, int]]:
    """The name of every image and its row among `kept` (int64, as of `distinct_rows`); a left-out copy has the row of its first."""
    labels = [0] * len(images) if images.labels is None else numbered_sets(images.labels).tolist()
    what = list(zip(images.keys().tolist(), labels, strict=True))
    place = {i: row for row, i in enumerate(kept.tolist())}
    first: dict[tuple[int, int], int] = {}
    for i, row in place.items():
        first.setdefault(what[i], row)
    return [(images.full_name(i), place.get(i, first[what[i]])) for i in range(len(images))]


def _contents(images: Images, rows: list[int]) -> list[bytes]:
    """A hash of each image's file, or of its pixels where not all of them have a file."""
    found: list[bytes] = []
    for i in rows:
        file = images.encoded(i)
        if file is None:
            return [_pixels_hash(images.read(i)) for i in rows]
        found.append(hashlib.sha256(file).digest())
    return found


def _pixels_hash(pixels: Tensor) -> bytes:
    return hashlib.sha256(f"{tuple(pixels.shape)} {pixels.dtype}".encode() + pixels.numpy().tobytes()).digest()
