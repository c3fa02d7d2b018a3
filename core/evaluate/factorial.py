"""A full factorial of two-level factors: effects, interactions and Shapley values, paired over seeds. Plain numbers, without torch.

Cell c of 2^k has factor i on where bit i of c is set. All cells of a seed share its random numbers, so each quantity is a weighted sum of
cells within a seed, and its interval is Student's t over the seeds' values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from .counts import Floats, Ints
from .intervals import ANY, ValueRange, mean_interval


class Attributed(NamedTuple):
    """A weighted sum of cells. values: of each seed. low, high: 95 % t-interval of the mean; None for one seed.

    variance_ratio: how many times as many seeds runs without common random numbers would need for the same interval; None for one seed,
    and where the seeds' values don't differ.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    variance_ratio: float | None


def effect_weights(factors: int, subset: int) -> Floats:
    """[2^k]: the effect of a subset of factors (a bit mask) as a weighted sum of cells.

    Of one factor: the mean over the cells where it is on, minus the mean over those where it is off. Of several: half the difference
    between the effect of all but one where that one is on and where it is off (Box, Hunter & Hunter 2005, chapter 5). Of none: the mean.
    """
    cells = np.arange(2**factors)
    off = np.bitwise_count(subset & ~cells)
    scale = 2.0**-factors if subset == 0 else 2.0 ** -(factors - 1)
    return np.where(off % 2, -scale, scale)


def shapley_weights(factors: int, factor: int) -> Floats:
    """[2^k]: the Shapley value of a factor as a weighted sum of cells: the mean, over all orders in which factors can be turned on, of what
    this one adds (Shapley 1953). Over the factors they sum to the cell with all on minus the cell with all off."""
    cells = np.arange(2**factors)
    on = (cells >> factor) & 1
    others = np.bitwise_count(cells) - on
    orders = np.array([math.factorial(n) * math.factorial(factors - 1 - n) for n in range(factors)], dtype=np.float64)
    return np.where(on, 1.0, -1.0) * orders[others] / math.factorial(factors)


def attributed(weights: Floats, responses: Floats, runs: Ints | None = None, span: ValueRange = ANY) -> Attributed:
    """A weighted sum of cells with its interval. weights: [2^k]. responses: [2^k, S], of each cell and seed.

    runs: [2^k], which run a cell is of, where cells share one because a factor changes nothing there; by default each has its own.
    span: what the sum can be; its interval is clipped to it.
    """
    if responses.ndim != 2 or len(responses) != len(weights):
        raise ValueError(f"needs the responses of {len(weights)} cells and of each seed, got {responses.shape}")
    values = weights @ responses
    mean, low, high = mean_interval(values.tolist(), span=span)
    return Attributed(tuple(values.tolist()), mean, low, high, _variance_ratio(weights, responses, values, runs))


def _variance_ratio(weights: Floats, responses: Floats, values: Floats, runs: Ints | None) -> float | None:
    """The variance of the sum if the runs were independent, over its variance with common random numbers."""
    if len(values) < 2 or not (paired := float(values.var(ddof=1))) > 1e-24:
        return None
    number = np.arange(len(weights)) if runs is None else np.unique(runs, return_inverse=True)[1]
    total = np.bincount(number, weights)
    first = np.array([int(np.flatnonzero(number == run)[0]) for run in range(len(total))])
    return float((total**2 * responses[first].var(axis=1, ddof=1)).sum()) / paired


def share_interval_of(
    parts: Sequence[float], totals: Sequence[float], level: float = 0.95
) -> tuple[float | None, float | None, float | None]:
    """(share, low, high) of a mean part in a mean total, seed by seed, by Fieller's theorem (Fieller 1954).

    The interval holds each share s for which "the mean of part - s total is 0" is not rejected. Nones: no share where the total is 0; no
    interval where the total's own interval holds 0, since no share is excluded then, or for one seed.
    """
    a, b = np.asarray(parts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"parts and totals must be as many, got {a.shape} and {b.shape}")
    mean_a, mean_b, n = float(a.mean()), float(b.mean()), len(a)
    if mean_b == 0:
        return None, None, None
    share = mean_a / mean_b
    if n == 1:
        return share, None, None
    t2 = float(stdtrit(n - 1, (1 + level) / 2)) ** 2 / n
    (var_a, cov), (_, var_b) = np.cov(a, b, ddof=1)
    square = mean_b**2 - t2 * var_b
    if square <= 0:
        return share, None, None
    middle, rest = mean_a * mean_b - t2 * cov, mean_a**2 - t2 * var_a
    half = math.sqrt(max(0.0, middle**2 - square * rest))
    return share, float((middle - half) / square), float((middle + half) / square)
