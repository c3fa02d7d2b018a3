"""The number of paired seeds: against published tables, simulated experiments, and its limits."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.special import stdtrit

from rootstock.core.evaluate.power import paired_power, seeds_needed


@pytest.mark.parametrize(
    ("effect", "power", "pairs"), [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.5, 0.95, 54)]
)
def test_pairs_as_gpower_gives_them(effect: float, power: float, pairs: int) -> None:
    """G*Power 3.1, difference of two dependent means, two-sided, alpha 0.05 (Faul et al. 2007)."""
    assert seeds_needed(1.0, effect, power) == pairs
    assert seeds_needed(0.03, -0.03 * effect, power) == pairs  # the units don't matter, nor does the sign


@pytest.mark.parametrize(("pairs", "effect"), [(2, 3.0), (3, 1.0), (5, 1.0), (10, 0.7), (34, 0.5), (10, 0.0)])
def test_power_is_the_share_of_experiments_that_show_the_effect(pairs: int, effect: float) -> None:
    differences = np.random.default_rng(0).normal(effect, 1.0, (100_000, pairs))
    t = differences.mean(axis=1) / differences.std(axis=1, ddof=1) * pairs**0.5
    shown = float((np.abs(t) > stdtrit(pairs - 1, 0.975)).mean())
    assert paired_power(pairs, 1.0, effect) == pytest.approx(shown, abs=0.006)


def test_power_grows_to_one_and_is_never_undefined() -> None:
    for effect in (0.01, 0.3, 1.0, 10.0, 1e3):
        powers = [paired_power(n, 1.0, effect) for n in (2, 3, 5, 10, 100, 1000, 10_000)]
        assert all(0.049 < power <= 1.0 for power in powers)
        assert all(more >= less - 1e-9 for less, more in pairwise(powers))


def test_what_no_number_of_seeds_shows() -> None:
    assert (
        seeds_needed(1.0, 0.0) is None and seeds_needed(1.0, 1e-4) is None and seeds_needed(1.0, float("nan")) is None
    )
    assert seeds_needed(0.0, 0.1) == 2
    with pytest.raises(ValueError, match="2 or more pairs"):
        paired_power(1, 1.0, 1.0)
