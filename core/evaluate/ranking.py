"""Metrics of the order of scores: top-k, area under the ROC curve, average precision; numpy alone.

The last two take weights of images, [B, N], so that one sort serves all draws of a bootstrap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .counts import Bools, Floats, Ints


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
