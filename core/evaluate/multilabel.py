"""Metrics of images that may have several classes, or none; numpy alone.

The thresholds of F1 are chosen on scores of *training* images, never on the test set's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .counts import Bools, Floats
from .ranking import macro_over_classes


def binary_cross_entropy(logits: NDArray[np.floating], labels: Bools) -> float:
    """Mean over images and classes of -log sigmoid(z) where there is the class, -log sigmoid(-z) elsewhere, in nats. [N, K] each."""
    z = logits.astype(np.float64)
    return float(np.logaddexp(0.0, np.where(labels, -z, z)).mean())


def choose_thresholds(scores: NDArray[np.floating], labels: Bools) -> Floats:
    """The threshold of each class with the highest F1 on these images, [K]; a class is predicted where score >= threshold.

    scores: [N, K] of held-out training images; labels: bool [N, K]. Of equal F1 the highest threshold. A class without images gets
    infinity: it is never predicted.
    """
    found = np.full(scores.shape[1], np.inf)
    for c in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-scores[:, c], kind="stable")
        ordered = scores[order, c]
        last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # the last image of each value
        hits = np.cumsum(labels[order, c])[last]
        f1 = 2 * hits / (last + 1 + labels[:, c].sum())
        found[c] = ordered[last[np.argmax(f1)]]
    return found


def multilabel_metrics(
    scores: NDArray[np.floating], labels: Bools, thresholds: Floats | None, *, logits: bool = True
) -> dict[str, float]:
    """Macro AP over the classes with images, BCE of logits, and with thresholds [K] micro and macro F1, as scikit-learn's.

    Macro F1 is the mean over all K classes; one that is neither there nor predicted counts as 0. scores, labels: [N, K].
    Metrics that are undefined are left out.
    """
    found = {"average_precision": float(macro_over_classes("average_precision", scores, labels)[0])}
    if logits:
        found["bce"] = binary_cross_entropy(scores, labels)
    if thresholds is not None:
        said = scores >= thresholds
        hits, support, predicted = ((a).sum(axis=0).astype(np.float64) for a in (said & labels, labels, said))
        each = np.divide(2 * hits, support + predicted, out=np.zeros(len(hits)), where=support + predicted > 0)
        whole = support.sum() + predicted.sum()
        found["f1_micro"] = float(2 * hits.sum() / whole) if whole else 0.0
        found["f1_macro"] = float(each.mean())
    return {name: value for name, value in found.items() if np.isfinite(value)}
