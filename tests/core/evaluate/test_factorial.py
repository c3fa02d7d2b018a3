"""Effects and Shapley values: against enumeration, on a model with known effects, and what common random numbers save."""

from itertools import permutations, product

import numpy as np
import pytest

from rootstock.core.evaluate.factorial import (
    attributed,
    effect_weights,
    shapley_weights,
    share_interval_of,
)
from rootstock.core.evaluate.intervals import mean_interval


def by_definition(y: dict[tuple[int, ...], float], subset: list[int]) -> float:
    """The mean difference that one factor makes; of several, half the change of the others' effect by it."""
    first, *rest = subset
    sides = [{cell: value for cell, value in y.items() if cell[first] == side} for side in (1, 0)]
    if not rest:
        on, off = (sum(side.values()) / len(side) for side in sides)
        return on - off
    return (by_definition(sides[0], rest) - by_definition(sides[1], rest)) / 2


def cells(responses: np.ndarray) -> dict[tuple[int, ...], float]:
    k = len(responses).bit_length() - 1
    return {tuple(c >> i & 1 for i in range(k)): float(responses[c]) for c in range(len(responses))}


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_effects_equal_their_definition(k: int) -> None:
    y = np.random.default_rng(k).normal(size=2**k)
    for subset in product((0, 1), repeat=k):
        chosen = [i for i in range(k) if subset[i]]
        mask = sum(1 << i for i in chosen)
        expected = by_definition(cells(y), chosen) if chosen else float(y.mean())
        assert effect_weights(k, mask) @ y == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_shapley_values_equal_the_mean_over_all_orders_and_sum_to_the_whole(k: int) -> None:
    y = np.random.default_rng(10 + k).normal(size=2**k)
    orders = list(permutations(range(k)))
    for factor in range(k):
        gains = []
        for order in orders:
            before = sum(1 << i for i in order[: order.index(factor)])
            gains.append(y[before | 1 << factor] - y[before])
        assert shapley_weights(k, factor) @ y == pytest.approx(sum(gains) / len(orders), abs=1e-12)
    assert sum(shapley_weights(k, i) for i in range(k)) @ y == pytest.approx(y[-1] - y[0], abs=1e-12)


def model(seeds: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """60 + 4 A + 2 B + 6 A B (on alone counts) + what a seed adds to all cells + noise of each run: [4, S]."""
    clean = np.array([60.0, 64.0, 62.0, 72.0])
    return clean[:, None] + rng.normal(0, 5, seeds) + rng.normal(0, noise, (4, seeds))


def test_known_effects_come_out_exactly_without_noise() -> None:
    y = model(3, 0.0, np.random.default_rng(0))
    a, b, both = (attributed(effect_weights(2, mask), y) for mask in (1, 2, 3))
    assert (a.mean, b.mean, both.mean) == pytest.approx((7.0, 5.0, 3.0))
    shapley = [attributed(shapley_weights(2, i), y).mean for i in range(2)]
    assert shapley == pytest.approx([4 + 3, 2 + 3])  # the interaction is shared equally
    assert a.low == pytest.approx(7.0) and a.high == pytest.approx(7.0)


def test_intervals_are_paired_over_seeds_and_cover() -> None:
    rng, weights, covered = np.random.default_rng(1), effect_weights(2, 1), 0
    for _ in range(400):
        y = model(4, 1.0, rng)
        found = attributed(weights, y)
        assert found.values == pytest.approx([(y[1, s] + y[3, s] - y[0, s] - y[2, s]) / 2 for s in range(4)])
        assert (found.mean, found.low, found.high) == pytest.approx(mean_interval(found.values))
        assert found.low is not None and found.high is not None
        covered += found.low <= 7.0 <= found.high
    assert 0.92 < covered / 400 < 0.98


def test_common_random_numbers_save_what_the_variances_say() -> None:
    """A seed's own part, variance 25, cancels; that of a run, 1, stays: (25 + 1) / 1 = 26 times as many seeds."""
    y = model(20_000, 1.0, np.random.default_rng(2))
    found = attributed(effect_weights(2, 1), y)
    assert found.variance_ratio == pytest.approx(26.0, rel=0.05)
    rng = np.random.default_rng(3)
    apart = rng.permuted(y, axis=1)  # seeds that are not common
    assert attributed(effect_weights(2, 1), apart).variance_ratio == pytest.approx(1.0, rel=0.05)
    assert np.var(effect_weights(2, 1) @ apart) / np.var(found.values) == pytest.approx(26.0, rel=0.05)


def test_cells_that_share_a_run_are_one_run() -> None:
    """Factor B changes nothing where A is off: cells 0 and 2 are one run, whose weights in B's effect cancel."""
    y = model(20_000, 1.0, np.random.default_rng(4))
    y[2] = y[0]
    found = attributed(effect_weights(2, 2), y, np.array([0, 1, 0, 2], dtype=np.int64))
    assert found.variance_ratio == pytest.approx(26.0, rel=0.05)  # of runs 1 and 3 alone
    assert attributed(effect_weights(2, 2), y).variance_ratio == pytest.approx(52.0, rel=0.05)


def test_one_seed_has_numbers_without_intervals() -> None:
    found = attributed(effect_weights(2, 1), model(1, 0.0, np.random.default_rng(5)))
    assert found.mean == pytest.approx(7.0) and found.low is None and found.variance_ratio is None
    with pytest.raises(ValueError, match="each seed"):
        attributed(effect_weights(2, 1), np.zeros(4, dtype=np.float64))


def test_no_interval_leaves_its_span() -> None:
    y = np.array([[0.02, 0.5], [0.99, 0.6]])
    found = attributed(effect_weights(1, 1), y, span=(-1.0, 1.0))
    assert found.low is not None and found.high == 1.0 and found.low >= -1.0


def test_fiellers_interval_holds_the_shares_that_a_t_test_does_not_reject() -> None:
    rng = np.random.default_rng(6)
    total = rng.normal(10, 1, 6)
    part = 0.4 * total + rng.normal(0, 0.5, 6)
    share, low, high = share_interval_of(part.tolist(), total.tolist())
    assert share == pytest.approx(part.mean() / total.mean()) and low is not None and high is not None
    assert share is not None and low < share < high
    for edge in (low, high):
        _, below, above = mean_interval((part - edge * total).tolist())
        assert below is not None and above is not None
        assert min(abs(below), abs(above)) == pytest.approx(0.0, abs=1e-9)


def test_fiellers_interval_covers() -> None:
    rng, covered = np.random.default_rng(7), 0
    for _ in range(400):
        seed = rng.normal(0, 1, 5)
        _, low, high = share_interval_of((4 + seed + rng.normal(0, 1, 5)).tolist(), (10 + 2 * seed).tolist())
        assert low is not None and high is not None
        covered += low <= 0.4 <= high
    assert 0.92 < covered / 400 < 0.98


def test_a_share_of_nothing_has_no_interval() -> None:
    assert share_interval_of([1.0, 2.0, 3.0], [1.0, -1.0, 0.5])[1:] == (None, None)
    assert share_interval_of([1.0, 1.0], [1.0, -1.0]) == (None, None, None)
    assert share_interval_of([1.0], [2.0]) == (0.5, None, None)
