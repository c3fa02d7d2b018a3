"""Risk-coverage and groups against slow versions."""

from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest

from rootstock.core.evaluate.selective import aurc, group_accuracies, risk_coverage


def slow(confidence: Any, correct: Any) -> Any:
    """The curve, mean over all orders that confidence allows."""
    orders = [
        o for o in permutations(range(len(confidence))) if all(confidence[a] >= confidence[b] for a, b in pairwise(o))
    ]
    curves = [[sum(not correct[i] for i in o[: j + 1]) / (j + 1) for j in range(len(o))] for o in orders]
    return np.mean(curves, axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_curve_is_the_mean_over_orders_of_equal_images(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence, correct = random.integers(0, 3, 6) / 3, random.random(6) < 0.5
    coverage, risk = risk_coverage(confidence, correct)
    assert coverage.tolist() == pytest.approx([(i + 1) / 6 for i in range(6)])
    assert risk == pytest.approx(slow(confidence, correct), abs=1e-12)
    assert aurc(confidence, correct) == pytest.approx(slow(confidence, correct).mean(), abs=1e-12)


def test_ends_of_the_curve() -> None:
    assert risk_coverage(np.array([0.3]), np.array([False]))[1].tolist() == [1.0]
    assert aurc(np.array([0.9, 0.1]), np.array([True, False])) == 0.25
    assert risk_coverage(np.array([0.5, 0.2, 0.1]), np.array([True, False, True]))[1][-1] == pytest.approx(1 / 3)


def test_groups_by_hand() -> None:
    correct = np.array([True] * 30 + [False] * 10 + [True, False, False])
    groups = np.array([0] * 40 + [2] * 3)
    found = group_accuracies(correct, groups, ["city", "sea", "wood"])
    assert found["groups"] == {
        "city": {"accuracy": 0.75, "images": 40},
        "wood": {"accuracy": 1 / 3, "images": 3},
    }
    assert (found["worst"], found["of"], found["small"]) == (1 / 3, "wood", ["wood"])
    assert found["mean"] == pytest.approx((0.75 + 1 / 3) / 2)
