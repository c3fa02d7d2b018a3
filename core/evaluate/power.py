"""How many paired seeds a difference needs: the power of the paired t-test, from the spread of the differences."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaincinv, ndtr, stdtrit

MOST_PAIRED_SEEDS = 10_000
_QUANTILES = 4096


def paired_power(pairs: int, spread: float, effect: float, level: float = 0.95) -> float:
    """The probability that the level-interval of a mean difference excludes 0, if the true one is `effect`.

    pairs: 2 or more. spread: standard deviation of the differences, above 0. (Noncentral t: Cohen 1988, section 2.)
    """
    if pairs < 2 or not spread > 0:
        raise ValueError(f"needs 2 or more pairs and a spread above 0, got {pairs} and {spread}")
    edge, shift = float(stdtrit(pairs - 1, (1 + level) / 2)), abs(effect) * math.sqrt(pairs) / spread
    # t = (z + shift) / s, and s^2 is a chi-square of pairs - 1 degrees of freedom over their number. scipy's own noncentral t is NaN for
    # ordinary arguments, so this is the mean over the quantiles of s.
    middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    edges = edge * np.sqrt(2 * gammaincinv((pairs - 1) / 2, middles) / (pairs - 1))
    return float((ndtr(shift - edges) + ndtr(-shift - edges)).mean())


def seeds_needed(spread: float, effect: float, power: float = 0.8, level: float = 0.95) -> int | None:
    """The fewest paired seeds with which a difference of `effect` is shown with this probability; None beyond 10,000, or for effect 0.

    spread: standard deviation (ddof=1) of the differences over the seeds that there are; with few of them it is itself rough.
    """
    if not effect or not math.isfinite(effect):
        return None
    if spread == 0:
        return 2
    few, many = 1, 2
    while paired_power(many, spread, effect, level) < power:
        if many >= MOST_PAIRED_SEEDS:
            return None
        few, many = many, min(2 * many, MOST_PAIRED_SEEDS)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if paired_power(middle, spread, effect, level) < power else (few, middle)
    return many
