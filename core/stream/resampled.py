"""Orders in which classes of unequal size come more evenly. As the other orders, they are functions of the step alone.

Each epoch gives a class a fixed number of places, and its images follow each other in a shuffled order that goes on from epoch to epoch
until each has come once, then in another. So classes have their shares in every epoch, not only on average, and no image of a class comes
again before the others of it have come. Drawing with replacement (torch's WeightedRandomSampler) has neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..draws import Indices, permute_array
from ..errors import UserError
from .order import Order

CLASS_POWERS: Mapping[str, float] = {"uniform": 0.0, "sqrt": 0.5, "balanced": 1.0}
"""The power a by name: an image of a class of n_c images comes in proportion to n_c^-a, and the class to n_c^(1 - a)."""


@dataclass(frozen=True)
class ResampledOrder(Order):
    """An order by class. labels: int64 [n], the class of each image. power: a of `class_power`, above 0 and at most 1.

    An epoch has as many places as there are images. A batch may hold an image twice where its class has few.
    """

    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.labels) != self.n or not 0.0 < self.power <= 1.0:
            raise ValueError(f"{len(self.labels)} labels of {self.n} images, power {self.power}")
        labels = self.labels.numpy()
        members = [np.flatnonzero(labels == one) for one in np.unique(labels)]
        places = shares([len(one) for one in members], self.power)
        object.__setattr__(self, "_members", members)
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "_ends", np.cumsum(places))

    def _images(self, epoch: int, places: Indices) -> Indices:
        slots = permute_array(self.seed, f"{self.name}/order/{epoch}", self.n, places % self.n)
        members: list[Indices] = self._members  # pyright: ignore[reportAttributeAccessIssue]
        counts: Indices = self._places  # pyright: ignore[reportAttributeAccessIssue]
        ends: Indices = self._ends  # pyright: ignore[reportAttributeAccessIssue]
        found = np.empty_like(slots)
        which = np.searchsorted(ends, slots, side="right")
        for k in np.unique(which).tolist():
            mine = which == k
            # The how-manieth image of its class this is, since the training began.
            number = slots[mine] - (ends[k] - counts[k]) + epoch * counts[k]
            found[mine] = members[k][self._turned(k, len(members[k]), number)]
        return found

    def _turned(self, k: int, n: int, number: Indices) -> Indices:
        """The place in its class of each numbered one; each round of n is a permutation of its own."""
        rounds, place = np.divmod(number, n)
        found = np.empty_like(place)
        for one in np.unique(rounds).tolist():
            mine = rounds == one
            found[mine] = permute_array(self.seed, f"{self.name}/class{k}/{one}", n, place[mine])
        return found


def shares(sizes: list[int], power: float) -> Indices:
    """The places of each class in an epoch of sum(sizes): in proportion to n^(1 - power), rounded by largest remainders; int64 [K]."""
    exact = np.array(sizes, dtype=np.float64) ** (1.0 - power)
    exact *= sum(sizes) / exact.sum()
    found = np.floor(exact).astype(np.int64)
    # Of equal remainders, the first class's counts as larger.
    order = np.argsort(-(exact - found), kind="stable")
    found[order[: sum(sizes) - int(found.sum())]] += 1
    return found


def class_power(sampler: str | float) -> float:
    """The power a that `data.sampler` names or gives. Raises UserError for a number outside 0 to 1."""
    power = CLASS_POWERS[sampler] if isinstance(sampler, str) else float(sampler)
    if not 0.0 <= power <= 1.0:
        raise UserError(
            f"data.sampler: expected {', '.join(CLASS_POWERS)}, or a number from 0 (uniform) to 1 (balanced), got {sampler}; 0.5 is sqrt"
        )
    return power


def order_of_classes(
    sampler: str | float, labels: Tensor, batch_size: int, seed: int, shuffle: str
) -> ResampledOrder | None:
    """The order that `data.sampler` names, of a single set; None for uniform, which is the usual one. Raises UserError."""
    power = class_power(sampler)
    if power == 0.0:
        return None
    if shuffle != "full":
        raise UserError(
            f"data.sampler: {sampler} draws images by class, so they are no neighbours on the disk as data.shuffle: {shuffle} wants them; "
            "use data.shuffle=full"
        )
    return ResampledOrder(len(labels), batch_size, seed, labels=labels, power=power)
