"""Splits by content: images are ordered by a hash of (seed, identity), which depends neither on names nor on labels.

Cuts are made between *unique* identities, so copies of one image, or several blends of one digit, stay on one side. Adjacent
slices with the same seed (`:80%` and `80%:`, or `:60%` and `60%:80%`) never overlap and leave nothing out.
"""

import hashlib
import re
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .places import abridged
from .several import has_several, rarest_classes

GENERIC = {"train": (None, "80%"), "test": ("80%", None)}
GRAMMAR = (
    "NAME, [SLICE,seed=S,stratify] or NAME[SLICE,seed=S,stratify] with a SLICE like :80%, 80%:, 20%:60% or :500; "
    "dirichlet=ALPHA beside or instead of a slice draws class priors, longtail=FACTOR makes classes of exponentially falling sizes"
)


BOUND = r"[0-9]{1,18}(?:\.[0-9]{1,18})?%|[0-9]{1,18}"
_DECIMAL = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"


class Fragment(NamedTuple):
    """One `#...` of a URI: a name, a slice, or both (a slice of the named split). Bounds are texts like '80%' or '500'.

    dirichlet: the alpha of drawn class priors (`with_drawn_priors`), longtail: the imbalance factor (`with_long_tail`), both applied
    after the slice; None without.
    """

    name: str | None
    low: str | None
    high: str | None
    sliced: bool
    seed: int
    stratify: bool
    dirichlet: float | None = None
    longtail: float | None = None
    seeded: bool = False  # the seed is given

    @property
    def drawn(self) -> bool:
        """Whether it says how large classes are."""
        return self.dirichlet is not None or self.longtail is not None

    @property
    def one_of_many(self) -> bool:
        """Whether other seeds or class sizes would draw other parts of the same set."""
        return self.seeded or self.drawn


def parse_fragment(text: str) -> Fragment:
    """Parse `NAME[SLICE,seed=S,stratify,dirichlet=ALPHA]`, or longtail=FACTOR. Raises UserError with the grammar."""
    match = re.fullmatch(r"([^\[\]]*)(?:\[([^\[\]]*)\])?", text)
    if not match or not text:
        raise UserError(f"#{abridged(text)} is not a split; expected {GRAMMAR}")
    name, inside = match.groups()
    low = high = dirichlet = longtail = None
    sliced, stratify, seed, seeded = False, False, 0, False
    for term in inside.split(",") if inside is not None else ():
        term = term.strip()
        if found := re.fullmatch(f"({BOUND})?:({BOUND})?", term):
            if sliced:
                raise UserError(f"#{abridged(text)} has two slices; expected {GRAMMAR}")
            (low, high), sliced = found.groups(), True
        elif found := re.fullmatch("seed=([0-9]{1,30})", term):
            seed, seeded = int(found.group(1)), True
        elif term == "stratify":
            stratify = True
        elif found := re.fullmatch(f"dirichlet=({_DECIMAL})", term):
            dirichlet = float(found.group(1))
            if not 0.01 <= dirichlet <= 1e4:
                raise UserError(f"#{abridged(text)}: dirichlet={found.group(1)} lies outside 0.01 to 10000")
        elif found := re.fullmatch(f"longtail=({_DECIMAL})", term):
            longtail = float(found.group(1))
            if not 1 <= longtail <= 1e5:
                raise UserError(f"#{abridged(text)}: longtail={found.group(1)} lies outside 1 to 100000")
        else:
            raise UserError(f"#{abridged(text)}: '{abridged(term)}' is not understood; expected {GRAMMAR}")
    if dirichlet is not None and longtail is not None:
        raise UserError(f"#{abridged(text)}: dirichlet and longtail both say how large classes are; keep one")
    if inside is not None and not sliced and dirichlet is longtail is None and name not in GENERIC:
        raise UserError(f"#{abridged(text)} has no slice, so its seed would do nothing; expected {GRAMMAR}")
    for bound in (low, high):
        if bound and bound.endswith("%") and Fraction(bound[:-1]) > 100:
            raise UserError(f"#{abridged(text)}: {bound} is more than 100 %")
    return Fragment(name or None, low, high, sliced, seed, stratify, dirichlet, longtail, seeded)


def cut_point(bound: str | None, count: int, default: int) -> int:
    """'80%' or '500' as a number of unique identities out of `count`; halves round up."""
    if bound is None:
        return default
    exact = Fraction(bound[:-1]) * count / 100 if bound.endswith("%") else Fraction(bound)
    return min(int(exact + Fraction(1, 2)), count)


def hash_order(keys: Tensor, seed: int) -> list[int]:
    """The unique identities of `keys` (int64 [N]) in the order of sha256(seed, identity)."""

    def digest(key: int) -> bytes:
        return hashlib.sha256(f"{seed}/".encode() + key.to_bytes(8, "big", signed=True)).digest()

    return sorted(set(keys.tolist()), key=digest)


def one_of_each(keys: Tensor, seed: int, most: int | None = None) -> Tensor:
    """int64 [M]: the first row of each of the first `most` identities in the hash order of the seed (of all by default), in this order.

    keys: int64 [N]. So a draw depends on content alone, not on the order of images or their copies.
    """
    first = {key: row for row, key in reversed(list(enumerate(keys.tolist())))}
    return torch.tensor([first[key] for key in hash_order(keys, seed)[:most]], dtype=torch.int64)


class TornGroup(ValueError):
    """A part is smaller than a group that lies across its edge. unit: the group's (`units_of`); size, wanted: in unique identities."""

    def __init__(self, unit: int, size: int, wanted: int) -> None:
        super().__init__(f"a group of {size} does not fit into a part of {wanted}")
        self.unit, self.size, self.wanted = unit, size, wanted


def cut(
    keys: Tensor,
    low: str | None,
    high: str | None,
    seed: int,
    labels: Tensor | None = None,
    units: Tensor | None = None,
) -> Tensor:
    """Indices (int64, ascending) of the images whose identity lies between the bounds in the hash order.

    keys: int64 [N]. labels: int64 [N], or uint8 [N, K], to cut within each class; None ignores labels. units: int64 [N], what stays
    together (`units_of`), by default identities. A unit counts as one class (see `keys_by_class`), so that it always stays on one side.
    Bounds count identities; a unit of several belongs to the side of its middle, so parts that meet still leave nothing out.
    Raises TornGroup if a unit that lies across a bound is larger than the whole part should be.
    """
    units = keys if units is None else units
    sizes = dict(zip(*(column.tolist() for column in identities_in(keys, units)), strict=True))
    chosen: set[int] = set()
    torn: list[tuple[int, int]] = []
    wanted = 0
    for group in [units] if labels is None else keys_by_class(units, labels).values():
        order = hash_order(group, seed)
        ends = np.cumsum([sizes[unit] for unit in order])
        begins = ends - [sizes[unit] for unit in order]
        total = int(ends[-1]) if len(order) else 0
        points = cut_point(low, total, 0), cut_point(high, total, total)
        # of a unit of one identity, the middle lies between two points, so nothing is rounded
        first, last = (int((begins + ends <= 2 * point).sum()) for point in points)
        chosen.update(order[first:last])
        wanted += max(points[1] - points[0], 0)
        across = {int(k) for point in points for k in ((begins < point) & (point < ends)).nonzero()[0]}
        torn += [(sizes[order[k]], order[k]) for k in across]
    if torn and wanted and max(torn)[0] > wanted:
        size, unit = max(torn)
        raise TornGroup(unit, size, wanted)
    inside = torch.tensor([unit in chosen for unit in units.tolist()], dtype=torch.bool)
    return inside.nonzero().flatten()


def identities_in(keys: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """(units, how many identities each has), int64 [U], ascending. keys, units: int64 [N]."""
    pairs = torch.stack([units, keys]).unique(dim=1)
    return pairs[0].unique_consecutive(return_counts=True)


def keys_by_class(keys: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """The identities of each class that has some, ascending. An identity's class is that of most of its images, of equals the smallest.

    keys, labels: int64 [N]. So any number of copies of all images gives the same classes. Labels uint8 [N, K] of images with several
    classes count as the rarest of them (`rarest_classes`).
    """
    labels = rarest_classes(keys, labels) if has_several(labels) else labels
    pairs, counts = torch.stack([keys, labels.long()]).unique(
        dim=1, return_counts=True
    )  # ascending by key, then by label
    order = np.lexsort((pairs[1].numpy(), -counts.numpy(), pairs[0].numpy()))
    key, label = pairs[:, torch.from_numpy(order)]
    first = torch.ones(len(key), dtype=torch.bool)
    first[1:] = key[1:] != key[:-1]
    key, label = key[first], label[first]
    return {int(one): key[label == one] for one in label.unique()}
