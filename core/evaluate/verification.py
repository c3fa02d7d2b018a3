"""Verification: whether two images have one class, decided by their cosine. Its errors at all thresholds, and how sure they are.

FAR, the false acceptance rate, is the part of impostor pairs at or above the threshold; FRR, the false rejection rate, that of genuine
pairs below it. The ROC curve has a point for each cosine that occurs, and one above all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UserError
from .cosines import pair_cosines, to_numpy, unit_rows
from .counts import Floats, Ints
from .image_pairs import ImagePairs, draw_pairs
from .measures import Measured
from .statistics import Values, bootstrap_intervals, cluster_numbers

EXPECTED_ACCEPTANCES = 10
"""A FRR at a given FAR needs so many impostor pairs above the threshold, 10 / FAR in all: with fewer, the threshold is a matter of luck."""


def verify_pairs(
    x: Tensor,
    labels: Tensor,
    keys: Tensor,
    *,
    pairs: int,
    far: Sequence[float],
    seed: int,
    name: str = "test",
    units: Tensor | None = None,
) -> Measured:
    """EER, FRR at each FAR, and AUROC of the pairs of a set, with intervals. x: [N, D]; labels, keys: int64 [N].

    units: int64 [N], what the bootstrap draws as a whole; the keys by default.

    pairs: the most that are compared; the others are left out by `draw_pairs`. A FAR is left out for fewer than 10 / FAR impostor pairs,
    and everything without pairs of both kinds; `left_out` of the details says why. Takes 90 bytes a pair beside a copy of the features and
    200 MB. Raises UserError for a set without images, and for features that are not finite.
    """
    if len(labels) == 0:
        raise UserError("there are no labelled images to score; give a test set with at least one")
    y, identities = to_numpy(labels), to_numpy(keys)
    drawn = draw_pairs(y, identities, pairs, seed)
    rows = unit_rows(x, name)
    genuine = int(drawn.genuine.sum())
    impostor = len(drawn.genuine) - genuine
    details: dict[str, Any] = {
        "images": len(y),
        "genuine": {"pairs": genuine, "of": drawn.of_genuine},
        "impostor": {"pairs": impostor, "of": drawn.of_impostor},
    }
    left_out = dict[str, str]()
    if not genuine or not impostor:
        reason = f"there are {genuine} genuine and {impostor} impostor pairs"
        details["left_out"] = dict.fromkeys(["eer", *map(_frr, far), "pair_auroc"], reason)
        return Measured({}, {}, details)
    for rate in far:
        if (need := EXPECTED_ACCEPTANCES / rate) * (1 - 1e-9) > impostor:
            left_out[_frr(rate)] = f"it needs {need:.6g} impostor pairs, there are {impostor}"
    if left_out:
        details["left_out"] = left_out
    member, clusters = cluster_numbers(identities if units is None else to_numpy(units))
    score = pair_cosines(rows, rows, drawn.first, drawn.second)
    roc = PairROC(score, drawn, member, [rate for rate in far if _frr(rate) not in left_out])
    found = bootstrap_intervals(roc, clusters, seed=seed)
    details["interval"] = found["eer"].method
    details["thresholds"] = roc.thresholds()
    intervals = {key: [i.low, i.high] for key, i in found.items() if i.low is not None and i.high is not None}
    return Measured({key: one.estimate for key, one in found.items()}, intervals, details)


class PairROC:
    """The metrics as a function of the weights of identities, [B, C] (`statistics.Statistic`).

    The weight of a pair is the product of its images' weights: what a bootstrap of *images* gives, where an image that is drawn twice makes
    each of its pairs twice. A bootstrap of pairs would take the pairs of one image for independent, and its intervals would be too narrow.
    """

    def __init__(self, score: Floats, pairs: ImagePairs, member: Ints, far: Sequence[float]) -> None:
        """score: [P], the cosine of each pair. member: [N], the identity of each image, 0..C-1. far: in 0..1."""
        order = np.argsort(-score, kind="stable")
        self.score, self.genuine, self.far = score[order], pairs.genuine[order], far
        self.first, self.second = (member[rows[order]] for rows in (pairs.first, pairs.second))
        # The numbers of pairs after which a threshold may lie: not between equal cosines.
        self.ends: Ints = np.flatnonzero(np.r_[True, self.score[1:] != self.score[:-1], True])
        self.distinct = len(self.ends) == len(score) + 1
        # New arrays for each draw would take as long as the sums.
        self.spare = [np.zeros(len(score) + 1, np.int64) for _ in range(4)]

    def __call__(self, weights: Floats) -> Values:
        """NaN where one kind of pair has no weight."""
        rows = [self._one(weight) for weight in weights]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _one(self, weight: Floats) -> dict[str, float]:
        accepted, falsely = self.counts(weight)
        genuine, impostor = int(accepted[-1]), int(falsely[-1])
        if not genuine or not impostor:
            return dict.fromkeys(["eer", *map(_frr, self.far), "pair_auroc"], np.nan)
        found = {"eer": _equal_error(accepted, falsely)[0]}
        for rate in self.far:
            found[_frr(rate)] = 1 - int(accepted[_last_within(falsely, rate)]) / genuine
        steps, twice = (array[: len(accepted) - 1].view(np.float64) for array in self.spare[2:])
        np.subtract(falsely[1:], falsely[:-1], out=steps)
        np.add(accepted[1:], accepted[:-1], out=twice)
        return found | {"pair_auroc": float(np.dot(steps, twice) / (2 * genuine * impostor))}

    def counts(self, weight: Floats) -> tuple[Ints, Ints]:
        """The weight of genuine and of impostor pairs that each threshold accepts, [1 + T] each, from none to all; until the next call.

        Weights are whole numbers; sums of integers are exact, and six times as fast as of floats.
        """
        whole = weight.astype(np.int64)
        total, genuine, both, other = (array[1:] for array in self.spare)
        np.take(whole, self.first, out=both, mode="clip")
        np.take(whole, self.second, out=other, mode="clip")
        both *= other
        np.cumsum(both, out=total)
        both *= self.genuine
        np.cumsum(both, out=genuine)
        total, genuine = self.spare[:2]
        if not self.distinct:
            total, genuine = total[self.ends], genuine[self.ends]
        total -= genuine
        return genuine, total

    def thresholds(self) -> dict[str, float]:
        """The cosine from which on pairs are accepted, for each metric that has one: at EER, the first at which FAR is at least FRR."""
        accepted, falsely = self.counts(np.ones(int(max(self.first.max(), self.second.max())) + 1))
        at = {"eer": _equal_error(accepted, falsely)[1]}
        at |= {_frr(rate): _last_within(falsely, rate) for rate in self.far}
        # Where even the highest cosine accepts too many, nothing is accepted: there is no threshold then.
        return {name: float(self.score[self.ends[place] - 1]) for name, place in at.items() if place}


def _equal_error(genuine: Ints, impostor: Ints) -> tuple[float, int]:
    """The rate at which FAR = FRR, on the line between the two points of the curve beside it, and the place of the second."""

    totals = int(genuine[-1]), int(impostor[-1])

    def gap(place: int) -> int:
        """FAR - FRR, times both totals: from below 0 to above it."""
        return int(genuine[place]) * totals[1] + int(impostor[place]) * totals[0] - totals[0] * totals[1]

    after = bisect_left(range(len(genuine)), 0, key=gap)
    part = gap(after - 1) / (gap(after - 1) - gap(after))
    rate = impostor[after - 1] + part * (impostor[after] - impostor[after - 1])
    return float(rate / totals[1]), after


def _last_within(impostor: Ints, far: float) -> int:
    """The last place of the curve whose FAR is at most `far`, up to rounding."""
    return int(np.searchsorted(impostor, far * impostor[-1] * (1 + 1e-12), side="right")) - 1


def _frr(far: float) -> str:
    return f"frr@{far}"
