"""Top-k, AUROC and average precision against scikit-learn and slow versions, with ties, absent classes and weights."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

from rootstock.core.evaluate.ranking import auroc, average_precision, in_top, macro_over_classes, one_hot


def drawn(seed: int, n: int, k: int, ties: bool) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (n, k)).astype(float) if ties else random.normal(size=(n, k))
    return scores, random.integers(0, k, n)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_auroc_and_ap_are_scikit_learns(seed: int, ties: bool) -> None:
    scores, labels = drawn(seed, 40, 2, ties)
    positive = labels == 1
    assert auroc(scores[:, 1], positive)[0] == pytest.approx(roc_auc_score(positive, scores[:, 1]), abs=1e-12)
    expected = average_precision_score(positive, scores[:, 1])
    assert average_precision(scores[:, 1], positive)[0] == pytest.approx(expected, abs=1e-12)


def test_macro_is_scikit_learns_one_against_the_rest() -> None:
    scores, labels = drawn(0, 60, 4, False)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = roc_auc_score(labels, p, multi_class="ovr", average="macro")
    assert macro_over_classes("auroc", p, one_hot(labels, 4))[0] == pytest.approx(expected, abs=1e-12)
    expected = average_precision_score(one_hot(labels, 4), p, average="macro")
    assert macro_over_classes("average_precision", p, one_hot(labels, 4))[0] == pytest.approx(expected, abs=1e-12)


def test_classes_with_one_kind_of_images_are_left_out() -> None:
    """Class 2 has no image; scikit-learn refuses it, so the mean of the two others is expected."""
    scores, labels = drawn(1, 30, 3, True)
    labels %= 2
    positive = one_hot(labels, 3)
    expected = np.mean([roc_auc_score(positive[:, c], scores[:, c]) for c in (0, 1)])
    assert macro_over_classes("auroc", scores, positive)[0] == pytest.approx(expected, abs=1e-12)
    expected = np.mean([average_precision_score(positive[:, c], scores[:, c]) for c in (0, 1)])
    assert macro_over_classes("average_precision", scores, positive)[0] == pytest.approx(expected, abs=1e-12)
    alone = one_hot(np.array([1]), 3)
    assert np.isnan(macro_over_classes("auroc", scores[:1], alone)[0])  # n = 1: no other kind
    assert macro_over_classes("average_precision", scores[:1], alone)[0] == 1.0


@pytest.mark.parametrize("metric", [auroc, average_precision])
def test_weights_are_repeated_images(metric: Any) -> None:
    scores, labels = drawn(2, 25, 2, True)
    weights = np.random.default_rng(0).integers(0, 4, (6, 25)).astype(float)
    found = metric(scores[:, 0], labels == 1, weights)
    for row, value in zip(weights.astype(int), found, strict=True):
        repeated = np.repeat(np.arange(25), row)
        assert value == pytest.approx(metric(scores[repeated, 0], labels[repeated] == 1)[0], abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_scikit_learns(k: int) -> None:
    scores, labels = drawn(3, 50, 6, False)
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(6))
    assert in_top(scores, labels, k).mean() == pytest.approx(expected, abs=1e-15)


def test_of_equal_scores_the_lower_index_is_first() -> None:
    scores, labels = drawn(4, 40, 7, True)
    slow = [
        label in sorted(range(7), key=lambda c: (-row[c], c))[:3] for row, label in zip(scores, labels, strict=True)
    ]
    assert in_top(scores, labels, 3).tolist() == slow
    assert in_top(scores, labels, 1).tolist() == (scores.argmax(1) == labels).tolist()
