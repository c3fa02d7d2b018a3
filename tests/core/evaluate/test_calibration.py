"""Likelihood, calibration error and temperature against scikit-learn, scipy and slow versions."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from rootstock.core.evaluate.calibration import (
    bins_of,
    calibration_error,
    calibration_floor,
    fit_temperature,
    log_likelihood,
    probabilities,
    reliability,
    squared_error,
)


def drawn(seed: int, n: int = 200, k: int = 4, scale: float = 3.0) -> tuple[Any, Any]:
    """Logits that are too sure by the factor `scale`, and labels drawn from their calibrated probabilities."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(n, k))
    labels = np.array([random.choice(k, p=p) for p in softmax(z, axis=1)])
    return scale * z, labels


@pytest.mark.parametrize("k", [2, 4])
def test_likelihood_and_brier_are_scikit_learns(k: int) -> None:
    logits, labels = drawn(0, 50, k)
    p = probabilities(logits, "logits")
    assert p is not None
    labels %= 2 if k == 2 else 3  # a class without images
    assert -log_likelihood(logits, labels, "logits").mean() == pytest.approx(
        log_loss(labels, p, labels=range(k)), abs=1e-12
    )
    assert -log_likelihood(p, labels, "probabilities").mean() == pytest.approx(
        log_loss(labels, p, labels=range(k)), abs=1e-12
    )
    expected = brier_score_loss(labels, p[:, 1] if k == 2 else p, labels=range(k), scale_by_half=False)  # pyright: ignore[reportArgumentType]
    assert squared_error(p, labels).mean() == pytest.approx(expected, abs=1e-12)


def test_votes_and_similarities_are_no_probabilities() -> None:
    assert probabilities(np.ones((2, 3)), "votes") is None and probabilities(np.ones((2, 3)), "similarities") is None
    with pytest.raises(ValueError, match="votes are no probabilities"):
        log_likelihood(np.ones((2, 3)), np.zeros(2, int), "votes")


def test_extreme_logits_have_a_finite_likelihood() -> None:
    logits, labels = np.array([[65504.0, -65504.0], [0.0, 65504.0]]), np.array([1, 1])
    assert log_likelihood(logits, labels, "logits").tolist() == [-131008.0, 0.0]
    assert log_likelihood(np.array([[1.0, 0.0]]), np.array([1]), "probabilities")[0] == pytest.approx(
        math.log(2.0**-52)
    )


def slow_ece(confidence: Any, correct: Any, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, p in enumerate(confidence) if (b / bins < p <= (b + 1) / bins) or (b == 0 and p == 0)]
        if inside:
            total += (
                len(inside)
                / len(confidence)
                * abs(sum(correct[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside))
            )
    return total


@pytest.mark.parametrize("n", [1, 2, 60])
def test_ece_against_a_loop(n: int) -> None:
    random = np.random.default_rng(n)
    confidence, correct = random.integers(0, 21, n) / 20, random.random(n) < 0.5
    assert calibration_error(confidence, correct, 10) == pytest.approx(slow_ece(confidence, correct, 10), abs=1e-12)
    whole = sum(b.images / n * abs(b.accuracy - b.confidence) for b in reliability(confidence, correct, 10))
    assert calibration_error(confidence, correct, 10) == pytest.approx(whole, abs=1e-12)


def test_bins_of_equal_mass_hold_equally_many_and_never_part_equal_images() -> None:
    confidence = np.random.default_rng(0).random(150)
    assert np.bincount(bins_of(confidence, equal_mass=True)).tolist() == [10] * 15
    tied = np.array([0.5] * 7 + [0.9] * 3)
    assert len(set(bins_of(tied, equal_mass=True)[:7].tolist())) == 1
    order = np.random.default_rng(1).permutation(10)
    correct = np.arange(10) % 2 == 0
    assert calibration_error(tied[order], correct[order], equal_mass=True) == pytest.approx(
        calibration_error(tied, correct, equal_mass=True), abs=1e-15
    )


def test_floor_is_the_error_of_a_calibrated_model() -> None:
    """Against a slow version that draws whole labels from p; and it falls like 1 / sqrt(n)."""
    p = softmax(np.random.default_rng(0).normal(size=(300, 5)), axis=1)
    sure = p.max(axis=1)
    random, slow = np.random.default_rng(1), []
    for _ in range(400):
        labels = (p.cumsum(1) > random.random((300, 1))).argmax(1)
        slow.append(calibration_error(sure, labels == p.argmax(1)))
    found = calibration_floor(sure, seed=0)
    assert found == pytest.approx(np.mean(slow), rel=0.05)
    assert calibration_floor(np.tile(sure, 16), seed=0) == pytest.approx(found / 4, rel=0.1)
    assert calibration_floor(sure[::-1], seed=0) == found and calibration_floor(sure, seed=1) != found
    assert calibration_floor(np.ones(5), seed=0) == 0.0 == calibration_error(np.ones(5), np.ones(5, bool))


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 50.0])
def test_temperature_is_the_minimum(scale: float) -> None:
    logits, labels = drawn(3, 400, 4, scale)
    found = fit_temperature(logits, labels)

    def nll(u: float) -> float:
        return float(-log_likelihood(logits / math.exp(u), labels, "logits").mean())

    best: Any = minimize_scalar(nll, bounds=(math.log(1e-3), math.log(1e3)), method="bounded", options={"xatol": 1e-10})
    assert nll(math.log(found.value)) <= best.fun + 1e-12
    assert found.value == pytest.approx(math.exp(best.x), rel=1e-4) and not found.at_bound and found.steps < 30
    assert found.value == pytest.approx(scale, rel=0.2)
    assert ((logits / found.value).argmax(1) == logits.argmax(1)).all()
    before = calibration_error(softmax(logits, axis=1).max(1), logits.argmax(1) == labels)
    after = calibration_error(softmax(logits / found.value, axis=1).max(1), logits.argmax(1) == labels)
    assert after < before or scale == 1.0


def test_a_class_that_the_classifier_does_not_know_moves_no_temperature() -> None:
    logits, labels = drawn(3, 100)
    unknown = np.concatenate([logits, np.full((100, 1), -np.inf)], axis=1)
    assert fit_temperature(unknown, labels) == fit_temperature(logits, labels)


def test_temperature_ends_at_its_bounds() -> None:
    right, labels = np.eye(3), np.arange(3)
    assert fit_temperature(right, labels)[::2] == (1e-3, True)  # all right: the sharper the better
    assert fit_temperature(right, (labels + 1) % 3)[::2] == (1e3, True)
    assert fit_temperature(np.zeros((4, 2)), np.array([0, 1, 0, 1])).at_bound  # nothing depends on T
