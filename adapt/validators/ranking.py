"""How well scores rank candidates whose accuracies are known: correlations of ranks within each task, with intervals.

For studies after the fact. Scores of different tasks are not comparable, so a correlation is taken within each task, over methods, seeds
and checkpoints alike, and averaged over tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ...core.evaluate.counts import Bools, Floats, Ints
from ...core.evaluate.ranks import kendall_tau
from ...core.evaluate.statistics import Interval, bootstrap_intervals, cluster_numbers, of_images

RANK_RESAMPLES = 1000
Coefficient = Literal["spearman", "weighted", "kendall"]
COEFFICIENTS: tuple[Coefficient, ...] = ("spearman", "weighted", "kendall")


def rank_correlation(
    scores: Sequence[float],
    accuracies: Sequence[float],
    tasks: Sequence[int] | None = None,
    drawn: Sequence[int] | None = None,
    *,
    seed: int = 0,
    resamples: int = RANK_RESAMPLES,
    coefficients: Sequence[Coefficient] = COEFFICIENTS,
) -> dict[str, Interval]:
    """Correlations of ranks by name of the coefficient, mean over tasks, each with a bootstrap interval of 95 %.

    scores: of candidates, larger is better; one that is not a number ranks last. accuracies: on the target. tasks: which candidates are
    compared; all by default. drawn: what is drawn as a whole in the bootstrap, as the candidates of one run are; each candidate by
    default. A task in which all scores are equal counts 0; without two candidates it doesn't count.
    coefficients: spearman; weighted (`weighted_ranks`); kendall, tau-b, of which each draw takes as long as a thousand of the others.
    """
    score = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    accuracy = np.asarray(accuracies, dtype=np.float64)
    task = np.zeros(len(score), dtype=np.int64) if tasks is None else np.asarray(tasks, dtype=np.int64)
    member, clusters = cluster_numbers(np.arange(len(score)) if drawn is None else np.asarray(drawn))
    groups = [np.flatnonzero(task == t) for t in np.unique(task)]

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        found = {name: np.full((len(groups), len(weights)), np.nan) for name in coefficients}
        for number, rows in enumerate(groups):
            for name, values in _correlations(score[rows], accuracy[rows], weights[:, rows], coefficients).items():
                found[name][number] = values
        return {name: _mean_of_known(values) for name, values in found.items()}

    return bootstrap_intervals(
        of_images(member, statistic), clusters, seed=seed, resamples=resamples, method="percentile"
    )


def _mean_of_known(values: Floats) -> Floats:
    """The mean over the first axis of what is a number; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(0)
    return np.divide(np.where(known, values, 0.0).sum(0), count, out=np.full(len(count), np.nan), where=count > 0)


def _correlations(
    score: Floats, accuracy: Floats, counts: Floats, coefficients: Sequence[Coefficient]
) -> dict[str, Floats]:
    """The coefficients of one task's candidates, [B] by name, where candidate i stands counts[b, i] times in draw b; NaN without two."""
    few = (counts > 0).sum(1) < 2
    constant = np.minimum(_different(score, counts), _different(accuracy, counts)) < 2
    found: dict[str, Floats] = {}
    for name in coefficients:
        if name == "kendall":
            found[name] = np.array([_kendall(score, accuracy, row) for row in counts.astype(np.int64)])
            continue
        importance = np.ones_like(counts) if name == "spearman" else importance_of(score, accuracy, counts)
        ranks = [weighted_ranks(values, counts, importance) for values in (score, accuracy)]
        found[name] = np.where(constant, 0.0, _pearson(ranks[0], ranks[1], counts * importance))
    return {name: np.where(few, np.nan, values) for name, values in found.items()}


def importance_of(score: Floats, accuracy: Floats, counts: Floats) -> Floats:
    """How much each candidate counts in the weighted correlation, [B, N] in 0..1: max(r, s)^2, r and s its dense ranks by score and by
    accuracy, divided by the largest (Musgrave et al. 2022, arXiv:2208.07360).

    A bad candidate that is ranked low costs nothing then; a good one that is ranked low, or a bad one that is ranked high, costs most.
    counts: [B, N], how often each stands in each draw.
    """
    shares = []
    for values in (score, accuracy):
        order, starts, places = _ties(values)
        there = np.add.reduceat(counts[:, order], starts, axis=1) > 0
        ranks = np.cumsum(there, axis=1)
        shares.append((ranks / np.maximum(ranks[:, -1:], 1))[:, places])
    return np.maximum(shares[0], shares[1]) ** 2


def weighted_ranks(values: Floats, counts: Floats, importance: Floats) -> Floats:
    """Ranks of [N] values, [B, N]: the importance of all that lie below, and for equal values the mean over their order.

    Value i stands counts[b, i] times with importance[b, i] each. Where every importance is 1, these are the usual middle ranks.
    """
    order, starts, places = _ties(values)
    size = np.add.reduceat(counts[:, order], starts, axis=1)
    mass = np.add.reduceat((counts * importance)[:, order], starts, axis=1)
    mean = np.divide(mass, size, out=np.zeros_like(mass), where=size > 0)
    return (np.cumsum(mass, axis=1) - mass + mean * (size + 1) / 2)[:, places]


def _pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson's correlation along the last axis of [B, N], weighted."""
    shares = weights / np.maximum(weights.sum(1, keepdims=True), 1e-300)
    x, y = (side - (shares * side).sum(1, keepdims=True) for side in (x, y))
    spread = (shares * x * x).sum(1) * (shares * y * y).sum(1)
    found = np.divide((shares * x * y).sum(1), np.sqrt(spread), out=np.zeros(len(x)), where=spread > 0)
    return np.clip(found, -1.0, 1.0)


def _different(values: Floats, counts: Floats) -> Ints:
    """How many different values each draw has, [B]."""
    order, starts, _ = _ties(values)
    return (np.add.reduceat(counts[:, order], starts, axis=1) > 0).sum(1)


def _ties(values: Floats) -> tuple[Ints, Ints, Ints]:
    """(order [N] by value, where each of the G different values begins in it [G], the number of its value for each row [N])."""
    order = np.argsort(values, kind="stable")
    new: Bools = np.concatenate([[True], values[order][1:] != values[order][:-1]])
    places = np.empty(len(values), dtype=np.int64)
    places[order] = np.cumsum(new) - 1
    return order, np.flatnonzero(new), places


def _kendall(score: Floats, accuracy: Floats, counts: Ints) -> float:
    a, b = np.repeat(score, counts), np.repeat(accuracy, counts)
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return 0.0
    return kendall_tau(a, b)
