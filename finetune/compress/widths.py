"""How many units of each group stay, so that the network has a share of its multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .channels import CoupledUnits

Scope = Literal["global", "layer"]

_LEVELS = 1000  # steps of the share by which all layers shrink alike


class Ranking:
    """The units of all groups by their importance, and how many stay at each level from 0 (all) to `levels` (the fewest).

    scope: layer: each group loses the same share of its units, those of lowest importance. global: those go that are lowest among all
    groups. least: share of each group that stays at least. multiple: numbers of channels are rounded to multiples of it, that of `least`
    upwards.
    """

    def __init__(
        self, groups: Sequence[CoupledUnits], scores: Sequence[Tensor], scope: Scope, least: float, multiple: int
    ) -> None:
        self.groups, self.scope, self.least, self.multiple = groups, scope, least, multiple
        # Stable, so that of equals the last ones go, on any machine.
        self.orders = [score.argsort(descending=True, stable=True) for score in scores]
        owners = torch.cat([torch.full((group.units,), number) for number, group in enumerate(groups)])
        self.weakest = owners[torch.cat(list(scores)).argsort(stable=True)]
        self.levels = _LEVELS if scope == "layer" else len(owners)

    def counts(self, level: int) -> tuple[int, ...]:
        """How many units of each group stay."""
        if self.scope == "layer":
            wanted = [group.units * (1.0 - level / _LEVELS) for group in self.groups]
        else:
            gone = self.weakest[:level].bincount(minlength=len(self.groups)).tolist()
            wanted = [float(group.units - lost) for group, lost in zip(self.groups, gone, strict=True)]
        return tuple(self._rounded(group, count) for group, count in zip(self.groups, wanted, strict=True))

    def _rounded(self, group: CoupledUnits, wanted: float) -> int:
        step = 1 if group.whole else self.multiple
        nearest = max(1, math.floor(wanted / step + 0.5)) * step
        fewest = math.ceil(math.ceil(self.least * group.units) / step) * step
        return min(group.units, max(nearest, fewest))

    def kept(self, counts: Sequence[int]) -> list[Tensor]:
        """The units of each group that stay, int64 ascending."""
        return [order[:count].sort().values for order, count in zip(self.orders, counts, strict=True)]

    def first_within(self, macs: Callable[[Sequence[int]], int], goal: int) -> tuple[int, ...] | None:
        """All units where these have at most `goal` multiply-adds, else the counts of the lowest level with so many; None if none has.

        macs: counts -> multiply-adds, which never rise with the level.
        """
        whole = tuple(group.units for group in self.groups)
        if macs(whole) <= goal:
            return whole
        low, high = 0, self.levels  # the answer lies above `low`
        if macs(self.counts(high)) > goal:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if macs(self.counts(middle)) <= goal else (middle, high)
        return self.counts(high)
