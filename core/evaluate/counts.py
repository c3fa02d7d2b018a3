"""Metrics of a confusion matrix from three counts a class, for many resampled test sets at once.

Every one of them is scikit-learn's (1.9) of the same name; numpy alone, so that a report needs no torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class ClassCounts(NamedTuple):
    """Weighted numbers of images of each class, float [..., K]: predicted rightly, labelled so, predicted so."""

    hits: Floats
    support: Floats
    predicted: Floats


def split_counts(sums: Floats) -> ClassCounts:
    """sums: float [..., 3K], as `class_counts` lays them out."""
    k = sums.shape[-1] // 3
    return ClassCounts(sums[..., :k], sums[..., k : 2 * k], sums[..., 2 * k :])


def class_counts(labels: Ints, predictions: Ints, member: Ints, clusters: int, num_classes: int) -> sparse.csr_array:
    """What each cluster adds to the counts, sparse [C, 3K]: hits, support, predicted.

    labels, predictions: [N] in 0..K-1; member: [N] in 0..C-1, the cluster of each image. At most three numbers an image are kept.
    """
    right = labels == predictions
    rows = np.concatenate([member[right], member, member])
    columns = np.concatenate([labels[right], num_classes + labels, 2 * num_classes + predictions])
    table = (np.ones(len(rows)), (rows, columns))
    return sparse.coo_array(table, shape=(clusters, 3 * num_classes)).tocsr()


def confusion_metrics(counts: ClassCounts) -> dict[str, Floats]:
    """Metrics of `definitions` by name, each [...]; NaN where one is undefined (kappa, if chance alone agrees wholly)."""
    hits, support, predicted = counts
    n = support.sum(-1)
    present, occurs = support > 0, (support > 0) | (predicted > 0)
    precision, recall = _ratio(hits, predicted), _ratio(hits, support)
    f1 = _ratio(2 * hits, support + predicted)
    accuracy = _ratio(hits.sum(-1), n)
    found = {"accuracy": accuracy}
    each = {"precision": precision, "recall": recall, "f1": f1}
    found |= {name: _mean(values, present) for name, values in each.items()}
    found["balanced_accuracy"] = found["recall"]
    found |= {f"{name}_macro": _mean(values, occurs) for name, values in each.items()}
    found |= {f"{name}_micro": accuracy for name in each}
    found |= {f"{name}_weighted": _ratio((values * support).sum(-1), n) for name, values in each.items()}
    chance = (support * predicted).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["kappa"] = (n * hits.sum(-1) - chance) / (n * n - chance)
    spread = (n * n - (predicted * predicted).sum(-1)) * (n * n - (support * support).sum(-1))
    found["mcc"] = _ratio(n * hits.sum(-1) - chance, np.sqrt(spread))
    return found


def open_set_metrics(counts: ClassCounts) -> dict[str, Floats]:
    """Metrics of `definitions` of a test whose last class holds all images of unknown classes, each [...]; hos first.

    NaN where one is undefined: no image of a known class, or no unknown one. Known classes without images don't count.
    """
    hits, support, _ = counts
    recall, there = _ratio(hits, support), support > 0
    known = np.where(there[..., :-1].any(-1), _mean(recall[..., :-1], there[..., :-1]), np.nan)
    unknown = np.where(there[..., -1], recall[..., -1], np.nan)
    some = known + unknown > 0
    both = np.where(some, 2 * known * unknown, 0.0) / np.where(some, known + unknown, 1.0)
    count = there[..., :-1].sum(-1)
    undefined = np.isnan(known + unknown)
    return {
        "hos": np.where(undefined, np.nan, both),
        "os_star": known,
        "unknown_accuracy": unknown,
        "os": (known * count + unknown) / (count + 1),
    }


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below > 0)


def _mean(values: Floats, where: Bools) -> Floats:
    """The mean over the last axis of the values that count."""
    return _ratio(np.where(where, values, 0.0).sum(-1), where.sum(-1).astype(np.float64))
