"""Metrics of the order of scores: top-k, area under the ROC curve, average precision; numpy alone.

The last two take weights of images, [B, N], so that one sort serves all draws of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .counts import Bools, Floats, Ints

# Precisions of so many thresholds and draws are computed at a time.
AT_ONCE = 1 << 21


def in_top(scores: NDArray[np.floating], labels: Ints, k: int) -> Bools:
    """Whether each image's class is among its k highest scores, bool [N]; of equal scores those of the lower index come first.

    scores: [N, K]; labels: [N] in 0..K-1.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1) < k


def auroc(scores: NDArray[np.floating], positive: Bools, weights: Floats | None = None) -> Floats:
    """Area under the ROC curve by mid-ranks (Mann-Whitney), [B]: the chance that a positive image has the higher score.

    scores: [N]; positive: bool [N]; weights: [B, N], all 1 (B = 1) if None. NaN where only one kind of image has weight.
    """
    order, starts = _thresholds(scores)
    up, down = _grouped(positive, weights, order, starts)
    below = np.cumsum(down, axis=1) - down
    return _divide((up * (below + down / 2)).sum(axis=1), up.sum(axis=1) * down.sum(axis=1))


def average_precision(scores: NDArray[np.floating], positive: Bools, weights: Floats | None = None) -> Floats:
    """Sum of (R_n - R_(n-1)) P_n over thresholds, [B]; equal scores are one threshold, and nothing is interpolated.

    scores, positive, weights: as of `auroc`. NaN where no positive image has weight.
    """
    order, starts = _thresholds(-scores)
    up, down = _grouped(positive, weights, order, starts)
    found = np.cumsum(up, axis=1)
    precision = np.divide(found, found + np.cumsum(down, axis=1), out=np.zeros_like(found), where=found > 0)
    return _divide((up * precision).sum(axis=1), found[:, -1])


def precision_of_draws(
    scores: NDArray[np.floating], positive: Bools, member: Ints, clusters: int
) -> Callable[[NDArray[np.float32]], Floats]:
    """`average_precision` as a function of clusters' weights, [C, B] -> [B], for many draws.

    scores, positive: [N], some of them positive; member: [N] in 0..C-1, the cluster of each. The scores are sorted once, and what lies
    between two thresholds with positive images is summed at once. Weights are whole numbers whose sum is below 2^24, as float32 has them.
    It takes up to 100 MB, or what one draw needs, and 8 bytes an image.
    """
    order, starts = _thresholds(-scores)
    sign, rows = positive[order], member[order]
    ends = np.r_[starts[1:], len(order)][np.add.reduceat(sign, starts, dtype=np.int64) > 0]
    passed = _summed(rows[: ends[-1]], ends, clusters)
    hits = _summed(rows[sign], np.cumsum(sign, dtype=np.int64)[ends - 1], clusters)

    def average(weights: NDArray[np.float32]) -> Floats:
        up = (hits @ weights).astype(np.float64)
        found, seen = np.cumsum(up, axis=0), np.cumsum(passed @ weights, axis=0, dtype=np.float64)
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        # cumsum, not sum, which adds in another order for a single draw
        return _divide(np.cumsum(up * precision, axis=0)[-1], found[-1])

    def in_parts(weights: NDArray[np.float32]) -> Floats:
        step = max(1, AT_ONCE // len(ends))
        return np.concatenate([average(weights[:, i : i + step]) for i in range(0, weights.shape[1], step)])

    return in_parts


def _summed(rows: Ints, ends: Ints, clusters: int) -> sparse.csr_array:
    """float32 [G, C]: times weights [C, B], the sums over rows before each end from the one before."""
    return sparse.csr_array((np.ones(len(rows), np.float32), rows, np.r_[0, ends]), shape=(len(ends), clusters))


def macro_over_classes(
    metric: str, scores: NDArray[np.floating], positive: Bools, weights: Floats | None = None
) -> Floats:
    """`auroc` or `average_precision` of each class against the rest, mean over the classes where it is defined, [B].

    scores: [N, K]; positive: bool [N, K]; weights: [B, N] or None. NaN where no class defines it.
    """
    one = {"auroc": auroc, "average_precision": average_precision}[metric]
    total, classes = np.zeros(1 if weights is None else len(weights)), 0.0
    for c in range(scores.shape[1]):
        if positive[:, c].any():  # else no weights define it
            value = one(scores[:, c], positive[:, c], weights)
            total = total + np.where(np.isnan(value), 0.0, value)
            classes = classes + ~np.isnan(value)
    return _divide(total, np.broadcast_to(np.asarray(classes, dtype=np.float64), total.shape))


def one_hot(labels: Ints, num_classes: int) -> Bools:
    """bool [N, K] of labels [N]."""
    return labels[:, None] == np.arange(num_classes)


def _thresholds(scores: NDArray[np.floating]) -> tuple[Ints, Ints]:
    """The order of ascending scores, and where in it each new value begins."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    return order, np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def _grouped(positive: Bools, weights: Floats | None, order: Ints, starts: Ints) -> tuple[Floats, Floats]:
    """The weight of positive and of negative images at each threshold, [B, G] each."""
    sign, weight = positive[order], np.ones((1, len(order))) if weights is None else weights[:, order]
    up, down = (np.add.reduceat(weight * kind, starts, axis=1) for kind in (sign, ~sign))
    return up, down


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
