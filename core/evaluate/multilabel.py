"""Metrics of images that may have several classes, or none; numpy alone.

The thresholds of F1 are chosen on scores of *training* images, never on the test set's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .counts import Bools, ClassCounts, Floats, Ints, split_counts
from .ranking import average_precision, precision_of_draws
from .statistics import Statistic, Values, of_sums


def binary_cross_entropy(logits: NDArray[np.floating], labels: Bools) -> float:
    """Mean over images and classes of -log sigmoid(z) where there is the class, -log sigmoid(-z) elsewhere, in nats. [N, K] each."""
    return float(_cross_entropies(logits, labels).mean())


def _cross_entropies(logits: NDArray[np.floating], labels: Bools) -> Floats:
    z = logits.astype(np.float64)
    return np.logaddexp(0.0, np.where(labels, -z, z))


def choose_thresholds(scores: NDArray[np.floating], labels: Bools) -> Floats:
    """The threshold of each class with the highest F1 on these images, [K]; a class is predicted where score >= threshold.

    scores: [N, K] of held-out training images; labels: bool [N, K]. It lies midway between the lowest score that is predicted and the next
    one below (on that score if there is none), so that another image of the class need not score as high as these. Of equal F1 the fewest
    images are predicted. A class without images gets infinity: it is never predicted.
    """
    found = np.full(scores.shape[1], np.inf)
    for c in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-scores[:, c], kind="stable")
        ordered = scores[order, c].astype(np.float64)  # the middle of two neighbours in float16 is neither
        last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # the last image of each value
        hits = np.cumsum(labels[order, c])[last]
        f1 = 2 * hits / (last + 1 + labels[:, c].sum())
        lowest = last[np.argmax(f1)]
        found[c] = ordered[lowest : lowest + 2].mean()
    return found


def multilabel_metrics(
    scores: NDArray[np.floating], labels: Bools, thresholds: Floats | None, *, logits: bool = True
) -> dict[str, float]:
    """Macro AP over the classes with images, micro AP, BCE of logits, and with thresholds [K] micro and macro F1, as scikit-learn's.

    Macro F1 is the mean over all K classes; one that is neither there nor predicted counts as 0. scores, labels: [N, K].
    Metrics that are undefined are left out.
    """
    images = np.arange(len(scores))
    found = multilabel_statistic(scores, labels, thresholds, images, len(images), logits=logits)(
        np.ones((1, len(images)))
    )
    return {name: float(value[0]) for name, value in found.items() if np.isfinite(value[0])}


def multilabel_statistic(
    scores: NDArray[np.floating], labels: Bools, thresholds: Floats | None, member: Ints, clusters: int, *, logits: bool
) -> Statistic:
    """The metrics of `multilabel_metrics` as a statistic of resampled clusters. member: [N] in 0..clusters-1, the cluster of each image."""
    each = [
        precision_of_draws(scores[:, c], labels[:, c], member, clusters) for c in np.flatnonzero(labels.any(axis=0))
    ]
    pairs = (
        precision_of_draws(scores.ravel(), labels.ravel(), np.repeat(member, scores.shape[1]), clusters)
        if each
        else None
    )

    def ranked(weights: Floats) -> Values:
        columns = np.ascontiguousarray(weights.T, dtype=np.float32)
        unknown = np.full(len(weights), np.nan)
        values = np.stack([one(columns) for one in each]) if each else unknown[None]
        known = np.isfinite(values)  # the mean of each draw is over the classes that it has
        sums, counts = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
        macro = np.divide(sums, counts, out=unknown.copy(), where=counts > 0)
        return {"average_precision": macro, "average_precision_micro": pairs(columns) if pairs else unknown}

    parts: list[Statistic] = [ranked]
    if logits:
        losses = _cross_entropies(scores, labels).mean(axis=1)
        table = np.stack([np.bincount(member, losses, clusters), np.bincount(member, minlength=clusters)], axis=1)
        parts.append(of_sums(table, lambda sums: {"bce": sums[:, 0] / sums[:, 1]}))
    if thresholds is not None:
        said = scores >= thresholds
        there = sparse.csr_array(
            (np.ones(len(member)), (member, np.arange(len(member)))), shape=(clusters, len(member))
        )
        counts = there @ sparse.csr_array(np.hstack([said & labels, labels, said]).astype(np.float64))
        parts.append(of_sums(counts, lambda sums: f1_scores(split_counts(sums))))
    return lambda weights: {name: value for part in parts for name, value in part(weights).items()}


def f1_scores(counts: ClassCounts) -> dict[str, Floats]:
    """Micro and macro F1, [...]; a class that is neither there nor predicted counts as 0."""
    hits, support, predicted = counts
    each = _ratio(2 * hits, support + predicted)
    return {"f1_micro": _ratio(2 * hits.sum(-1), (support + predicted).sum(-1)), "f1_macro": each.mean(-1)}


def per_class_metrics(
    scores: NDArray[np.floating], labels: Bools, thresholds: Floats | None, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of each class its images, AP (None without images), and, with thresholds, its threshold (None: never predicted) and F1."""
    found: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(classes):
        there = labels[:, c]
        precision = average_precision(scores[:, c], there)[0]
        found[name] = {"support": int(there.sum()), "average_precision": float(precision) if there.any() else None}
        if thresholds is not None:
            said = scores[:, c] >= thresholds[c]
            total = int(there.sum() + said.sum())
            found[name] |= {
                "threshold": float(thresholds[c]) if np.isfinite(thresholds[c]) else None,
                "f1": 2 * int((there & said).sum()) / total if total else 0.0,
            }
    return found


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)
