"""Metrics of images with several classes against scikit-learn and slow versions."""

import warnings
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, log_loss

from rootstock.core.evaluate import ranking
from rootstock.core.evaluate.multilabel import (
    binary_cross_entropy,
    choose_thresholds,
    multilabel_metrics,
    multilabel_statistic,
)


def drawn(seed: int, n: int = 60, k: int = 4) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    labels = random.random((n, k)) < 0.4
    return random.normal(size=(n, k)) + labels, labels


def test_against_scikit_learn() -> None:
    (train, train_labels), (logits, labels) = drawn(0), drawn(1)
    thresholds = choose_thresholds(train, train_labels)
    found = multilabel_metrics(logits, labels, thresholds)
    said = logits >= thresholds
    assert found["average_precision"] == pytest.approx(
        average_precision_score(labels, logits, average="macro"), abs=1e-12
    )
    assert found["average_precision_micro"] == pytest.approx(
        average_precision_score(labels, logits, average="micro"), abs=1e-12
    )
    assert found["bce"] == pytest.approx(log_loss(labels.ravel(), expit(logits).ravel()), abs=1e-9)
    assert found["f1_micro"] == pytest.approx(f1_score(labels, said, average="micro"), abs=1e-12)
    assert found["f1_macro"] == pytest.approx(f1_score(labels, said, average="macro"), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_have_the_best_f1_of_all(ties: bool) -> None:
    scores, labels = drawn(2, 30, 3)
    scores = np.round(scores) if ties else scores
    found = choose_thresholds(scores, labels)
    for c in range(3):
        best = max(f1_score(labels[:, c], scores[:, c] >= t) for t in scores[:, c])
        assert f1_score(labels[:, c], scores[:, c] >= found[c]) == pytest.approx(best, abs=1e-12)


def test_thresholds_lie_midway_to_the_next_score() -> None:
    """So an image of the class that scores a little less than those of training is still found; classes that are apart have F1 of 1."""
    scores = np.array([[4.0, 1.0], [3.0, 0.0], [-1.0, 3.0], [-2.0, 2.0]])
    labels = np.array([[True, True], [True, True], [False, True], [False, True]])
    found = choose_thresholds(scores, labels)
    assert found.tolist() == [1.0, 0.0]  # all have the second class: there is no score below
    half = np.array([[1.0], [np.nextafter(np.float16(1), np.float16(0))]], np.float16)
    (between,) = choose_thresholds(half, np.array([[True], [False]]))
    assert half[1, 0] < between < half[0, 0]
    assert choose_thresholds(np.array([[2.0], [2.0], [0.0]]), np.array([[True], [False], [False]])).tolist() == [1.0]


def test_thresholds_find_an_image_that_scores_a_little_less() -> None:
    random = np.random.default_rng(0)
    labels = random.random((200, 1)) < 0.5
    scores = np.where(labels, 3.0, -3.0) + random.normal(size=(200, 1)) / 2
    train, test = slice(0, 40), slice(40, None)
    metrics = multilabel_metrics(scores[test], labels[test], choose_thresholds(scores[train], labels[train]))
    assert metrics["average_precision"] == metrics["f1_macro"] == 1.0


def test_a_class_without_images_is_never_predicted() -> None:
    scores, labels = drawn(3)
    labels[:, 1] = False
    thresholds = choose_thresholds(scores, labels)
    assert thresholds[1] == np.inf
    found = multilabel_metrics(scores, labels, thresholds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["f1_macro"] == pytest.approx(f1_score(labels, scores >= thresholds, average="macro"), abs=1e-12)
    rest = [0, 2, 3]
    expected = average_precision_score(labels[:, rest], scores[:, rest], average="macro")
    assert found["average_precision"] == pytest.approx(expected, abs=1e-12)
    assert "average_precision" not in multilabel_metrics(scores, np.zeros_like(labels), None)


@pytest.mark.parametrize("ties", [False, True])
def test_draws_are_metrics_of_repeated_images(ties: bool) -> None:
    """A draw's weights against scikit-learn on images that are repeated as often; some draws have no image of a class."""
    scores, labels = drawn(4, 12, 3)
    scores, labels[2:, 0] = np.round(scores) if ties else scores, False
    member, thresholds = np.arange(12) // 2, np.zeros(3)
    statistic = multilabel_statistic(scores, labels, thresholds, member, 6, logits=True)
    weights = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=20).astype(np.float64)
    found = statistic(weights)
    for b, weight in enumerate(weights):
        rows = np.repeat(np.arange(12), weight[member].astype(int))
        expected = multilabel_metrics(scores[rows], labels[rows], thresholds)
        there = np.flatnonzero(labels[rows].any(axis=0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected["average_precision"] = float(
                np.mean([average_precision_score(labels[rows, c], scores[rows, c]) for c in there])
            )
        assert {name: values[b] for name, values in found.items()} == pytest.approx(expected, abs=1e-12)


def test_extreme_logits() -> None:
    assert binary_cross_entropy(np.array([[65504.0, -65504.0]]), np.array([[True, False]])) == 0.0
    assert binary_cross_entropy(np.array([[65504.0]]), np.array([[False]])) == 65504.0


def test_draws_a_few_at_a_time_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = drawn(5, 40, 1)
    weights = np.random.default_rng(0).multinomial(40, [1 / 40] * 40, size=30).T.astype(np.float32)
    one = ranking.precision_of_draws(scores[:, 0], labels[:, 0], np.arange(40), 40)
    found = one(weights)
    monkeypatch.setattr(ranking, "AT_ONCE", 1)
    assert np.array_equal(one(weights), found)
    expected = ranking.average_precision(scores[:, 0], labels[:, 0], weights.T.astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-12)
