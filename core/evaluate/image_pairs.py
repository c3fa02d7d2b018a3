"""Pairs of images for verification: genuine ones have one class, impostors two. Images of one identity are copies, and no pair.

Pairs are numbered by a formula, so a few of billions are drawn without listing all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..draws import permute_array
from .counts import Bools, Ints

_BLOCK = 1 << 20  # pairs that are looked at at a time: some 60 MB


class ImagePairs(NamedTuple):
    """first, second: int64 [P], rows of the set. genuine: bool [P]. of_genuine, of_impostor: how many there are in the whole set."""

    first: Ints
    second: Ints
    genuine: Bools
    of_genuine: int
    of_impostor: int


def draw_pairs(labels: Ints, keys: Ints, most: int, seed: int) -> ImagePairs:
    """All pairs if they are at most `most`; else as many, drawn without replacement: half genuine, half impostors.

    labels, keys: int64 [N]. If there are fewer of one kind than half, all of it is taken, and more of the other. Which are drawn depends on
    the seed and on the identities and labels; the order of images tells only images apart that share both. Takes 17 bytes a pair beside
    60 MB. Genuine pairs come first.
    """
    order = np.lexsort((keys, labels))
    y, identities = labels[order], keys[order]
    _, starts, sizes = np.unique(y, return_index=True, return_counts=True)
    ends = starts + sizes

    def genuine(number: Ints) -> tuple[Ints, Ints]:
        within, which = _places(sizes * (sizes - 1) // 2, number)
        # Pair number j (j - 1) / 2 + i of a class is that of its images i < j; the root may be off by its rounding.
        j = ((1 + np.sqrt(1 + 8 * within.astype(np.float64))) / 2).astype(np.int64)
        j -= j * (j - 1) // 2 > within
        j += j * (j + 1) // 2 <= within
        return starts[which] + within - j * (j - 1) // 2, starts[which] + j

    def impostor(number: Ints) -> tuple[Ints, Ints]:
        within, which = _places(sizes * (len(y) - ends), number)
        later = len(y) - ends[which]
        return starts[which] + within // later, ends[which] + within % later

    changes = np.flatnonzero((np.diff(y) != 0) | (np.diff(identities) != 0)) + 1
    alike = _pairs_within(np.diff(np.r_[0, changes, len(y)]))
    counts = {
        genuine: (_pairs_within(sizes), alike),
        impostor: (
            int((sizes * (len(y) - ends)).sum()),
            _pairs_within(np.unique(identities, return_counts=True)[1]) - alike,
        ),
    }
    found = {decode: space - copies for decode, (space, copies) in counts.items()}
    wanted = {genuine: min(found[genuine], max(most // 2, most - found[impostor]))}
    wanted[impostor] = min(found[impostor], most - wanted[genuine])
    parts = [
        _taken(decode, counts[decode][0], found[decode], wanted[decode], identities, seed, name)
        for decode, name in ((genuine, "genuine"), (impostor, "impostor"))
    ]
    first, second = (order[np.concatenate(rows)] for rows in zip(*parts, strict=True))
    kinds = np.repeat([True, False], [len(rows) for rows, _ in parts])
    return ImagePairs(first, second, kinds, found[genuine], found[impostor])


def _places(sizes: Ints, number: Ints) -> tuple[Ints, Ints]:
    """(number within its class, class) of numbers that run through all classes."""
    last = np.cumsum(sizes)
    which = np.searchsorted(last, number, side="right")
    return number - (last - sizes)[which], which


def _pairs_within(sizes: Ints) -> int:
    """Pairs inside of groups of these sizes."""
    return int((sizes * (sizes - 1) // 2).sum())


def _taken(
    decode: Callable[[Ints], tuple[Ints, Ints]], space: int, there: int, wanted: int, keys: Ints, seed: int, name: str
) -> tuple[Ints, Ints]:
    """`wanted` of the `there` pairs, out of `space` numbers, that are no copies: all in order, or the first of a keyed permutation."""
    found, missing = [(np.empty(0, np.int64), np.empty(0, np.int64))], wanted
    for start in range(0, space if wanted else 0, _BLOCK):
        number = np.arange(start, min(start + _BLOCK, space))
        if wanted < there:
            number = permute_array(seed, f"verification/{name}", space, number)
        first, second = decode(number)
        right = np.flatnonzero(keys[first] != keys[second])[:missing]
        found.append((first[right], second[right]))
        missing -= len(right)
        if not missing:
            break
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])
