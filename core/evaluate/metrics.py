"""Classification metrics and intervals, as plain numbers that go into result.json.

Fractions in 0..1. A class without test images has no recall, so its per-class numbers are None and macro averages leave it out; a
class that is never predicted has precision and F1 of 0, as in scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .statistics import bootstrap_draws, cluster_numbers, of_sums


def classification(labels: Tensor, predictions: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro and per-class precision, recall and F1, and the confusion matrix.

    labels, predictions: int64 [N], N >= 1, in 0..K-1; classes: the K names, all different.
    Returns {"accuracy", "precision", "recall", "f1", "classes", "per_class": {name: {"precision", "recall", "f1",
    "support"}}, "confusion": K rows (true class) of K counts (predicted class)}. F1 is 2 TP / (2 TP + FP + FN); macro
    F1 is the mean of the classes' F1, not the F1 of the macro precision and recall.
    """
    k = len(classes)
    if len(set(classes)) != k:
        raise ValueError(f"class names must differ, got {list(classes)}")
    labels, predictions = labels.detach().cpu().long(), predictions.detach().cpu().long()
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise ValueError(f"labels {tuple(labels.shape)} and predictions {tuple(predictions.shape)} must both be [N]")
    if len(labels) == 0:
        raise UserError("there are no labelled images to score; give a test set with at least one")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if int(values.min()) < 0 or int(values.max()) >= k:
            span = f"{int(values.min())}..{int(values.max())}"
            raise UserError(
                f"{name} lie in {span}, but {k} classes are numbered 0..{k - 1}; do the sets' classes match?"
            )
    confusion = torch.bincount(labels * k + predictions, minlength=k * k).view(k, k)
    hits, support, predicted = (t.tolist() for t in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
    per_class: dict[str, dict[str, float | int | None]] = {}
    for name, hit, there, said in zip(classes, hits, support, predicted, strict=True):
        per_class[name] = {
            "precision": (hit / said if said else 0.0) if there else None,
            "recall": hit / there if there else None,
            "f1": 2 * hit / (there + said) if there else None,
            "support": there,
        }
    macro = {
        metric: math.fsum(scores[metric] or 0.0 for scores in per_class.values()) / sum(n > 0 for n in support)
        for metric in ("precision", "recall", "f1")
    }
    accuracy = sum(hits) / len(labels)
    return {
        "accuracy": accuracy,
        **macro,
        "classes": list(classes),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def cluster_bootstrap(
    correct: Tensor, groups: Tensor, *, seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float | None, float | None]:
    """(low, high): the percentile bootstrap interval of accuracy, drawing whole groups with replacement.

    correct: bool [N]; groups: int64 [N], e.g. the key of the digit that an image was made from: images of one group are
    not independent, so resampling images would make the interval too narrow (Davison & Hinkley 1997, section 3.8). The
    order of images doesn't matter. Returns (None, None) for a single group, which shows no spread. If all images are right (or
    wrong) the interval has width 0, as always with the bootstrap.
    """
    hit, group = correct.detach().cpu().numpy().astype(np.float64), groups.detach().cpu().numpy()
    if hit.shape != group.shape or hit.ndim != 1 or len(hit) == 0:
        raise ValueError(f"correct {hit.shape} and groups {group.shape} must both be [N], N >= 1")
    member, clusters = cluster_numbers(group)
    if clusters == 1:
        return None, None
    sums = np.stack([np.bincount(member, hit), np.bincount(member)], axis=1)
    drawn = bootstrap_draws(
        of_sums(sums, lambda s: {"accuracy": s[:, 0] / s[:, 1]}), clusters, seed=seed, resamples=resamples
    )
    low, high = np.quantile(drawn["accuracy"], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
