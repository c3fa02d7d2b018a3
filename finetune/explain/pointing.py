"""The pointing game: whether the highest place of a map lies on the object (Zhang et al. 2016, arXiv:1608.00507, section 4.2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ...core.draws import Draws
from ...core.evaluate.counts import Bools, Floats
from ...core.evaluate.statistics import Interval, share_interval
from .curves import mean_intervals

# Zhang et al. count a point within 15 px of the object; their pictures have some 500 px.
TOLERANCE_PART = 15 / 500


class Pointed(NamedTuple):
    """One picture. place: row and column of the point; hit: whether it lies on the mask or within the tolerance of it.

    chance: the share of the picture where any point would be a hit. centre: whether its middle would be one.
    """

    place: tuple[int, int]
    hit: bool
    chance: float
    centre: bool


class PointingGame(NamedTuple):
    """Over pictures: hits, chance and centre as shares, and what the map has before both, each with its interval."""

    n: int
    hits: Interval
    chance: Interval
    centre: Interval
    above_chance: Interval
    above_centre: Interval

    @property
    def better_than_chance(self) -> bool:
        """Whether the interval of hits minus chance, picture by picture, lies above 0."""
        return self.above_chance.low is not None and self.above_chance.low > 0


def point_at(found: Tensor, mask: Bools, key: int, seed: int, tolerance: float) -> Pointed:
    """found: a map [H, W]; mask: bool [H, W], with the object somewhere; tolerance: pixels.

    Of several places that are highest together, one is drawn by the picture's identity. Raises ValueError for an empty mask.
    """
    if not mask.any() or mask.shape != found.shape:
        raise ValueError(f"a mask of {mask.shape} with an object is needed for a map of {tuple(found.shape)}")
    near = np.asarray(distance_transform_edt(~mask)) <= tolerance
    highest = (found == found.max()).nonzero()
    which = int(Draws(seed, torch.tensor([key])).integers("explain/point", len(highest)))
    row, column = (int(x) for x in highest[which])
    middle = (mask.shape[0] // 2, mask.shape[1] // 2)
    return Pointed((row, column), bool(near[row, column]), float(near.mean()), bool(near[middle]))


def pointing_game(found: list[Pointed], units: Tensor, seed: int) -> PointingGame:
    """units: int64 [N], what the bootstrap draws as a whole (`Images.units`)."""
    hits, chance, centre = (
        np.array([getattr(one, name) for one in found], float) for name in ("hit", "chance", "centre")
    )
    means = mean_intervals({"chance": chance, "over": hits - chance, "beside": hits - centre}, units, seed)
    return PointingGame(
        len(found),
        _share(hits, units, seed),
        means["chance"],
        _share(centre, units, seed),
        means["over"],
        means["beside"],
    )


def _share(values: Floats, units: Tensor, seed: int) -> Interval:
    return share_interval(values > 0, units.numpy(), seed=seed)
