"""Metrics of counts against scikit-learn, with absent classes, classes predicted but absent, one class and one image."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from rootstock.core.evaluate.counts import class_counts, confusion_metrics, split_counts


def measured(labels: Any, predictions: Any, k: int, member: Any = None) -> dict[str, float]:
    member = np.arange(len(labels)) if member is None else member
    counts = class_counts(np.asarray(labels), np.asarray(predictions), member, int(member.max()) + 1, k)
    found = confusion_metrics(split_counts(np.asarray(counts.sum(axis=0))))
    return {name: float(value) for name, value in found.items()}


CASES = {
    "five classes": tuple(np.random.default_rng(0).integers(0, 5, (2, 80))),
    "two classes": tuple(np.random.default_rng(1).integers(0, 2, (2, 30))),
    "an absent class is predicted": (np.array([0, 0, 2]), np.array([0, 1, 2])),
    "a class is never predicted": (np.array([0, 1, 2, 2]), np.array([0, 0, 0, 2])),
    "one class": (np.zeros(4, int), np.zeros(4, int)),
    "one image, right": (np.array([1]), np.array([1])),
    "one image, wrong": (np.array([1]), np.array([0])),
    "all wrong": (np.array([0, 1, 2]), np.array([1, 2, 0])),
}


@pytest.mark.parametrize("case", CASES)
def test_against_scikit_learn(case: str) -> None:
    labels, predictions = CASES[case]
    found = measured(labels, predictions, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes without images
        for average in ("macro", "micro", "weighted"):
            expected = precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)  # pyright: ignore[reportArgumentType]
            for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
                assert found[f"{name}_{average}"] == pytest.approx(value, abs=1e-12), (name, average)
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions), abs=1e-12)
        assert found["mcc"] == pytest.approx(matthews_corrcoef(labels, predictions), abs=1e-12)
        kappa = cohen_kappa_score(labels, predictions)
        assert found["kappa"] == pytest.approx(kappa, abs=1e-12, nan_ok=True)
    assert found["accuracy"] == np.mean(labels == predictions)


def test_macro_over_present_classes_differs_where_an_absent_one_is_predicted() -> None:
    """By hand: 0, 0, 2 predicted 0, 1, 2. Precision of classes 0, 1, 2 is 1, 0, 1: over those that occur 2/3, over those present 1."""
    found = measured([0, 0, 2], [0, 1, 2], 3)
    assert (found["precision_macro"], found["precision"]) == pytest.approx((2 / 3, 1.0))


def test_clusters_add_up_and_weights_repeat_images() -> None:
    random = np.random.default_rng(0)
    labels, predictions, member = random.integers(0, 4, 50), random.integers(0, 4, 50), random.integers(0, 9, 50)
    assert measured(labels, predictions, 4, member) == measured(labels, predictions, 4)
    weights = random.integers(0, 3, (5, 9))
    counts = class_counts(labels, predictions, member, 9, 4)
    found = confusion_metrics(split_counts(np.asarray(weights @ counts)))
    for i, row in enumerate(weights):
        repeated = np.repeat(np.arange(50), row[member])
        expected = measured(labels[repeated], predictions[repeated], 4)
        assert {name: value[i] for name, value in found.items()} == pytest.approx(expected, abs=1e-12)
