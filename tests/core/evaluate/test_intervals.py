"""Intervals over seeds against scipy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from rootstock.core.evaluate.intervals import mean_interval, negative_transfer, paired_interval


def test_mean_interval() -> None:
    values = [0.85, 0.81, 0.88, 0.84, 0.86]
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(0.848)
    # By hand: sum of squared deviations 0.00268, over n - 1 = 4; t(4, .975) = 2.776445.
    half = 2.776445 * math.sqrt(0.00268 / 4) / math.sqrt(5)
    assert (low, high) == pytest.approx((0.848 - half, 0.848 + half), abs=1e-7)
    expected = stats.t.interval(0.9, 4, loc=mean, scale=stats.sem(values))
    assert mean_interval(values, level=0.9)[1:] == pytest.approx(expected)


def test_mean_interval_of_few_values() -> None:
    assert mean_interval([0.5]) == (0.5, None, None)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="not finite"):
        mean_interval([0.5, math.nan])
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([0.5], level=95)


def test_paired_interval_is_that_of_the_differences() -> None:
    a, b = [0.8, 0.7, 0.9], [0.7, 0.65, 0.78]
    found = paired_interval(a, b)
    assert found[0] == pytest.approx(0.09)
    expected = stats.ttest_rel(a, b).confidence_interval()
    assert found[1:] == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="3 and 2"):
        paired_interval(a, b[:2])


def test_intervals_stay_in_the_range_of_their_values() -> None:
    values = [0.95, 0.99, 1.0]
    mean, low, high = mean_interval(values)
    assert high is not None and high > 1.0
    assert mean_interval(values, span=(0, 1)) == (mean, low, 1.0)
    assert mean_interval([0.0, 0.0, 0.1], span=(0, 1))[1] == 0.0
    assert paired_interval([1.0, 0.9, 0.2], [0.0, 0.0, 0.0], span=(-1, 1))[2] == 1.0


def test_negative_transfer_only_where_the_paired_interval_is_below_0() -> None:
    control = [0.70, 0.50, 0.60, 0.65]
    assert negative_transfer([c - 0.05 - 0.001 * i for i, c in enumerate(control)], control)
    assert not negative_transfer([c + 0.05 for c in control], control)
    assert not negative_transfer([0.69, 0.52, 0.59, 0.64], control)
    assert not negative_transfer([0.1], [0.9])  # one seed has no interval
    # Unpaired, these spreads overlap: pairing sees the loss.
    assert np.std(control, ddof=1) > 0.05
