"""What each metric of result.json means: its definition in words, its range, and whether more is better.

Metrics that scikit-learn has are computed as there, and where scikit-learn has a name for a variant (`f1_macro`), this is that variant.
Without torch and numpy, so that pages and commands can read it at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Definition(NamedTuple):
    """meaning: in words. low, high: the range. percent: whether a page shows it in per cent. better: "higher" or "lower"."""

    meaning: str
    low: float = 0.0
    high: float = 1.0
    percent: bool = True
    better: str = "higher"


_PRESENT = "mean over the classes that the test set has"
_OCCURRING = "mean over the classes that occur among labels or predictions, as scikit-learn's `macro`"
_WEIGHTED = "mean over classes, weighted by their images, as scikit-learn's `weighted`"
_MICRO = "over all images at once, as scikit-learn's `micro`; equals accuracy where an image has one label"

DEFINITIONS: Mapping[str, Definition] = {
    "accuracy": Definition("right images of all images"),
    "precision": Definition(f"right images of those predicted as a class, {_PRESENT}"),
    "recall": Definition(f"right images of those of a class, {_PRESENT}"),
    "f1": Definition(f"2 TP / (2 TP + FP + FN), {_PRESENT}"),
    "top5": Definition(
        "images whose class is among the five highest scores, of equal ones those of the lower index; left out for five classes or fewer"
    ),
    "balanced_accuracy": Definition(f"recall, {_PRESENT}"),
    "precision_macro": Definition(f"precision, {_OCCURRING}"),
    "recall_macro": Definition(f"recall, {_OCCURRING}"),
    "f1_macro": Definition(f"F1, {_OCCURRING}; over all classes where an image may have several"),
    "precision_micro": Definition(f"precision, {_MICRO}"),
    "recall_micro": Definition(f"recall, {_MICRO}"),
    "f1_micro": Definition(f"F1, {_MICRO}"),
    "precision_weighted": Definition(f"precision, {_WEIGHTED}"),
    "recall_weighted": Definition(f"recall, {_WEIGHTED}"),
    "f1_weighted": Definition(f"F1, {_WEIGHTED}"),
    "auroc": Definition(
        "area under the ROC curve of one class against the rest, with mid-ranks for equal scores, mean over the classes with both kinds of "
        "images"
    ),
    "average_precision": Definition(
        "sum of (R_n - R_(n-1)) P_n over thresholds, equal scores being one, of one class against the rest, mean over the classes that the "
        "test set has"
    ),
    "average_precision_micro": Definition(
        "average precision of all pairs of an image and a class at once; of images with several classes each"
    ),
    "memorised": Definition(
        "training images with a wrong label on purpose (data.label_noise) that get it, without augmentation: learned by heart",
        better="lower",
    ),
    "recovered": Definition(
        "training images with a wrong label on purpose (data.label_noise) that get their own all the same, without augmentation"
    ),
    "kappa": Definition("Cohen's kappa: agreement beyond chance", -1.0, 1.0, percent=False),
    "mcc": Definition("Matthews' correlation coefficient", -1.0, 1.0, percent=False),
    "nll": Definition(
        "negative log-likelihood of the labels in nats, mean over images", 0.0, math.inf, percent=False, better="lower"
    ),
    "bce": Definition(
        "binary cross-entropy in nats, mean over images and classes", 0.0, math.inf, percent=False, better="lower"
    ),
    "brier": Definition(
        "sum over classes of (p - onehot)^2, mean over images", 0.0, 2.0, percent=False, better="lower"
    ),
    "ece": Definition(
        "expected calibration error: 15 bins of equal width of the highest probability, distance of accuracy and confidence over images",
        better="lower",
    ),
    "ece_equal_mass": Definition("ece with 15 bins of equally many images", better="lower"),
    "ece_floor": Definition(
        "the ece that a perfectly calibrated model of the same confidences would have on as many images", better="lower"
    ),
    "nll_scaled": Definition(
        "nll after temperature scaling; T is fitted on held-out training images", 0.0, math.inf, False, "lower"
    ),
    "ece_scaled": Definition("ece after temperature scaling; T is fitted on held-out training images", better="lower"),
    "aurc": Definition(
        "area under the risk-coverage curve: mean error among the most confident images, over all their numbers",
        better="lower",
    ),
    "hos": Definition(
        "open-set tests: harmonic mean of os_star and unknown_accuracy, 2 a b / (a + b); 0 where either is 0"
    ),
    "os_star": Definition("open-set tests: accuracy within each known class, mean over those that the test set has"),
    "unknown_accuracy": Definition("open-set tests: images of unknown classes that are predicted as unknown"),
    "os": Definition("open-set tests: accuracy within each class, mean over the known ones and `unknown` as one more"),
    "worst_group": Definition("smallest accuracy of a group (domain) of the test set"),
    "mean_group": Definition("mean of the groups' accuracies"),
    "accuracy_many": Definition(
        f"classes with more training images than data.class_groups' second number: recall, {_PRESENT}"
    ),
    "accuracy_medium": Definition(
        f"classes with training images from its first to its second number: recall, {_PRESENT}"
    ),
    "accuracy_few": Definition(f"classes with fewer training images than its first number: recall, {_PRESENT}"),
    "miou": Definition(
        "hits / (labelled + predicted - hits) of each class in pixels, summed over the whole test set, mean over the classes that occur "
        "among labels or predictions; ignored pixels left out"
    ),
    "pixel_accuracy": Definition("right pixels of all pixels that are not ignored"),
    "map": Definition(
        "retrieval: mean of P(r) over the ranks r of a query's relevant images in the whole gallery; mean over queries"
    ),
    "map@r": Definition(
        "retrieval: sum of P(r) over the relevant ranks r of at most R, divided by R, the number of a query's relevant images; mean over "
        "queries"
    ),
    "recall@k": Definition("retrieval: queries with a relevant image among the k nearest"),
    "precision@k": Definition("retrieval: part of the k nearest that is relevant, mean over queries"),
    "eer": Definition(
        "verification: the rate at which FAR (accepted impostor pairs) equals FRR (rejected genuine pairs), on the line between two "
        "thresholds",
        better="lower",
    ),
    "frr@far": Definition("verification: FRR at the lowest threshold whose FAR is at most the number", better="lower"),
    "pair_auroc": Definition(
        "verification: chance that a genuine pair has a higher cosine than an impostor pair, equal ones counting half"
    ),
    "ms_an_image": Definition(
        "milliseconds an image from a decoded, cut picture to its pooled features, median over batches; a measurement of the clock, so no "
        "repeated run gives it again",
        0.0,
        math.inf,
        percent=False,
        better="lower",
    ),
}
# Names that end in a number, as `recall@5`, stand for these.
_NUMBERED = {key.partition("@")[0]: key for key in ("recall@k", "precision@k", "frr@far")}


def definition_of(metric: str) -> Definition | None:
    """The definition of TEST/PROTOCOL/METRIC; None for a name that only an earlier version, or a file by hand, has."""
    name = metric.rsplit("/", 1)[-1]
    kind, at, number = name.partition("@")
    if at and kind in _NUMBERED and number.replace(".", "").replace("e-", "").isdecimal():
        name = _NUMBERED[kind]
    return DEFINITIONS.get(name)


def range_of(metric: str) -> tuple[float, float]:
    """The range of TEST/PROTOCOL/METRIC: no interval leaves it. Unknown metrics may have any value."""
    found = definition_of(metric)
    return (-math.inf, math.inf) if found is None else (found.low, found.high)
