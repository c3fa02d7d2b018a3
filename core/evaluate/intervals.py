"""Intervals over seeds, as plain numbers. Without torch, so that a report of runs need not import it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

ValueRange = tuple[float, float]  # the values that a statistic can have
ANY: ValueRange = (-math.inf, math.inf)


def mean_interval(
    values: Sequence[float], level: float = 0.95, span: ValueRange = ANY
) -> tuple[float, float | None, float | None]:
    """(mean, low, high): Student's t interval of the mean, deviation with ddof=1; no interval for one value.

    span: what values can be, (0, 1) for a fraction; the interval's ends are clipped to it.
    """
    if len(values) == 0:
        raise ValueError("a mean needs at least one value")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"a mean over values that are not finite: {list(values)}")
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return mean, None, None
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(array.std(ddof=1)) / math.sqrt(n)
    low, high = span
    return mean, max(low, mean - half), min(high, mean + half)


def paired_interval(
    a: Sequence[float], b: Sequence[float], level: float = 0.95, span: ValueRange = ANY
) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of a - b, pair by pair: a[i] and b[i] share a seed. span: what differences can be."""
    if len(a) != len(b):
        raise ValueError(f"paired values must be as many, got {len(a)} and {len(b)}")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], level, span)


def negative_transfer(method: Sequence[float], control: Sequence[float], level: float = 0.95) -> bool:
    """Whether a method is worse than its control: the paired interval over seeds of method - control lies wholly below 0.

    method, control: accuracies, value i of seed i. False with one seed, which has no interval.
    """
    _, _, high = paired_interval(method, control, level, span=(-1.0, 1.0))
    return high is not None and high < 0.0
