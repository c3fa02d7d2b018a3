"""Bootstrap, exact tests and corrections against scipy, slow versions, and coverage by simulation."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rootstock.core.evaluate.counts import class_counts, confusion_metrics, split_counts
from rootstock.core.evaluate.ranking import auroc
from rootstock.core.evaluate.statistics import (
    bootstrap_draws,
    bootstrap_intervals,
    bootstrap_p,
    cluster_numbers,
    drawn_weights,
    few_errors,
    holm,
    mcnemar,
    nadeau_bengio,
    of_images,
    of_sums,
    seeds_and_images_interval,
    seeds_and_images_p,
    share_interval,
    wilson,
)


def mean_of(x: Any) -> Any:
    return of_sums(np.stack([x, np.ones(len(x))], 1), lambda s: {"mean": s[:, 0] / s[:, 1]})


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_against_scipy(method: Any) -> None:
    """A skewed sample, for which BCa differs from percentiles. Both draw 20,000 times, from other seeds."""
    x = np.random.default_rng(0).exponential(size=30)
    found = bootstrap_intervals(mean_of(x), 30, seed=1, resamples=20000, method=method)["mean"]
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20000, method=method, rng=np.random.default_rng(2))
    low, high = theirs.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert found.method == method and found.estimate == pytest.approx(x.mean())


def test_bca_of_the_same_draws_is_scipys() -> None:
    """scipy's formula, on our own draws and jackknife: the same quantiles to the last digits."""
    x = np.random.default_rng(0).exponential(size=30)
    draws = bootstrap_draws(mean_of(x), 30, seed=1)["mean"]
    jackknife = np.array([np.delete(x, i).mean() for i in range(30)])
    z0 = stats.norm.ppf(((draws < x.mean()).mean() + (draws <= x.mean()).mean()) / 2)
    d = jackknife.mean() - jackknife
    a = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
    ends = [stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in stats.norm.ppf([0.025, 0.975])]
    found = bootstrap_intervals(mean_of(x), 30, seed=1)["mean"]
    assert found.method == "bca"
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, ends)), abs=1e-12)


def test_weights_are_numbers_of_draws_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(drawn_weights(7, 50, 3)))
    assert (whole.sum(1) == 7).all() and whole.shape == (50, 7)
    monkeypatch.setattr("rootstock.core.evaluate.statistics._NUMBERS", 20)
    assert np.array_equal(np.concatenate(list(drawn_weights(7, 50, 3))), whole)


@pytest.mark.parametrize("statistic", ["macro F1", "AUROC"])
def test_any_statistic_against_a_loop_over_clusters(statistic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistic is computed anew for each draw of whole clusters of unequal sizes."""
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 3, 40), random.integers(0, 3, 40)
    scores = random.integers(0, 5, 40).astype(float)
    member, clusters = cluster_numbers(random.integers(-5, 5, 40))

    def slow(images: Any) -> float:
        if statistic == "AUROC":
            return float(auroc(scores[images], labels[images] == 1)[0])
        own = np.arange(len(images))
        counts = class_counts(labels[images], predictions[images], own, len(own), 3)
        return float(confusion_metrics(split_counts(np.asarray(counts.sum(0))))["f1"])

    if statistic == "AUROC":
        fast = of_images(member, lambda w: {"x": auroc(scores, labels == 1, w)})
    else:
        counts = class_counts(labels, predictions, member, clusters, 3)
        fast = of_sums(counts, lambda s: {"x": confusion_metrics(split_counts(s))["f1"]})
    expected = list[float]()
    for block in drawn_weights(clusters, 60, 5):
        expected += [slow(np.repeat(np.arange(40), w[member].astype(int))) for w in block]
    found = bootstrap_draws(fast, clusters, seed=5, resamples=60)["x"]
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
    monkeypatch.setattr("rootstock.core.evaluate.statistics._NUMBERS", 30)
    assert np.array_equal(bootstrap_draws(fast, clusters, seed=5, resamples=60)["x"], found, equal_nan=True)


def test_where_there_is_no_interval() -> None:
    one = bootstrap_intervals(mean_of(np.ones(1)), 1, seed=0)["mean"]
    assert (one.low, one.high, one.method) == (None, None, "none")
    same = bootstrap_intervals(mean_of(np.ones(5)), 5, seed=0)["mean"]
    assert (same.estimate, same.low, same.high) == (1.0, None, None)
    undefined = bootstrap_intervals(lambda w: {"x": np.full(len(w), np.nan)}, 5, seed=0)["x"]
    assert math.isnan(undefined.estimate) and undefined.low is None
    with pytest.raises(ValueError, match="0 < level < 1"):
        bootstrap_intervals(mean_of(np.ones(2)), 2, seed=0, level=95)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 20), (19, 20), (20, 20), (1, 1), (7, 30)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson(k / n, n)
    assert 0 <= low <= k / n <= high <= 1


@pytest.mark.parametrize("errors", [0, 1, 2, 49, 50])
def test_few_errors_take_wilson(errors: int) -> None:
    correct = np.arange(50) >= errors
    found = share_interval(correct, np.arange(50), seed=0)
    assert found.method == ("bca" if errors == 2 else "wilson")
    assert found.low is not None and found.high is not None and 0 <= found.low < found.high <= 1
    copies = share_interval(np.tile(correct, 8), np.tile(np.arange(50), 8), seed=0)
    assert (copies.low, copies.high) == pytest.approx((found.low, found.high), abs=1e-12)  # copies add nothing
    assert not few_errors(np.ones(3, bool), np.zeros(3, int), 1)


def test_many_clusters_take_percentiles() -> None:
    correct = np.random.default_rng(0).random(200) < 0.8
    assert share_interval(correct, np.arange(200), seed=0).method == "percentile"


def test_coverage_of_accuracy_by_simulation() -> None:
    """Clusters of four images that agree: 95 % intervals hold the truth in about 95 % of 200 test sets, those over images do not."""
    random, truth = np.random.default_rng(0), 0.8
    inside, naive = 0, 0
    for _ in range(200):
        correct = np.repeat(random.random(60) < truth, 4)
        found = share_interval(correct, np.repeat(np.arange(60), 4), seed=0, resamples=200)
        alone = share_interval(correct, np.arange(240), seed=0, resamples=200)
        assert found.low is not None and found.high is not None and alone.low is not None and alone.high is not None
        inside += found.low <= truth <= found.high
        naive += alone.low <= truth <= alone.high
    assert 0.9 <= inside / 200 <= 0.98
    assert naive / 200 < 0.8


def test_coverage_of_seeds_and_images_by_simulation() -> None:
    """Three seeds on one test set: both spreads count. Each alone is too narrow."""
    random, inside, seeds_alone, images_alone = np.random.default_rng(1), 0, 0, 0
    for _ in range(200):
        images, seeds = 0.04 * random.normal(size=50), 0.01 * random.normal(size=3)
        table = 0.8 + images[:, None] * math.sqrt(50) / 2 + seeds
        draws = bootstrap_draws(mean_of(table.mean(1)), 50, seed=0, resamples=200)["mean"]
        values = table.mean(0).tolist()
        both = seeds_and_images_interval(values, draws, seed=0)
        one = seeds_and_images_interval(values[:1], draws - draws.mean() + values[0], seed=0)
        half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
        assert both.low is not None and both.high is not None and one.low is not None and one.high is not None
        inside += both.low <= 0.8 <= both.high
        seeds_alone += abs(np.mean(values) - 0.8) <= half
        images_alone += one.low <= 0.8 <= one.high
    assert inside / 200 >= 0.93
    assert seeds_alone < inside and images_alone < inside


def test_seeds_and_images_are_clipped() -> None:
    draws = np.random.default_rng(0).normal(0.98, 0.01, 2000)
    found = seeds_and_images_interval([0.95, 0.99, 1.0], draws, seed=0, span=(0.0, 1.0))
    assert found.high == 1.0 and found.low is not None and found.low < 0.95
    alone = seeds_and_images_interval([0.98], draws, seed=0, span=(0.0, 1.0))
    assert (alone.low, alone.high) == pytest.approx(tuple(np.quantile(draws.clip(0, 1), [0.025, 0.975])))


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_is_scipys_binomial_test(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.random(40) < 0.8, random.random(40) < 0.6
    only_a, only_b, p = mcnemar(a, b)
    assert only_a == sum(x and not y for x, y in zip(a, b, strict=True))
    assert p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue, abs=1e-12)
    assert mcnemar(b, a) == (only_b, only_a, p)


def test_mcnemar_of_agreeing_models() -> None:
    assert mcnemar(np.ones(5, bool), np.ones(5, bool)) == (0, 0, 1.0)
    assert mcnemar(np.array([True, False]), np.array([False, True])) == (1, 1, 1.0)  # capped: 2 P = 1.5
    with pytest.raises(ValueError, match="same images"):
        mcnemar(np.ones(5, bool), np.ones(4, bool))


def test_holm_against_a_slow_version() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.04, 0.9]
    slow, largest = {}, 0.0
    for rank, i in enumerate(sorted(range(6), key=lambda i: (p[i], i))):
        largest = max(largest, (6 - rank) * p[i])
        slow[i] = min(1.0, largest)
    assert holm(p) == pytest.approx([slow[i] for i in range(6)])
    assert holm([]) == [] and holm([0.03]) == [0.03]
    assert holm([0.5, 0.6]) == [1.0, 1.0]


def test_nadeau_bengio_by_hand() -> None:
    d = [0.01, 0.03, 0.02, 0.02]
    mean, low, high = nadeau_bengio(d, 75, 25)
    half = 3.182446 * math.sqrt((1 / 4 + 25 / 75) * np.var(d, ddof=1))
    assert (mean, low, high) == pytest.approx((0.02, 0.02 - half, 0.02 + half), abs=1e-8)
    assert nadeau_bengio([0.5], 10, 5) == (0.5, None, None)


def mean_and_p(gaps: Any, resamples: int = 1000) -> float:
    clusters = len(gaps)
    draws = bootstrap_draws(mean_of(gaps), clusters, seed=0, resamples=resamples)["mean"]
    return bootstrap_p(draws, float(gaps.mean()), clusters)


def test_bootstrap_p_of_no_difference() -> None:
    assert bootstrap_p(np.array([-1.0, 1.0]), 0.0, 30) == 1.0 == bootstrap_p(np.zeros(10), 0.0, 30)
    assert bootstrap_p(np.full(10, np.nan), np.nan, 30) == 1.0 == bootstrap_p(np.ones(10), 1.0, 1)


@pytest.mark.parametrize(("clusters", "least"), [(2, 0.5), (3, 0.25), (5, 1 / 16), (30, 2.0**-29)])
def test_a_handful_of_pictures_shows_little(clusters: int, least: float) -> None:
    """All of them for one side: changing the signs of their differences makes as large a mean once in 2^(C - 1)."""
    assert mean_and_p(np.ones(clusters)) == least


@pytest.mark.parametrize("clusters", [2, 4, 8, 40])
def test_chance_is_called_a_difference_as_often_as_it_says(clusters: int) -> None:
    random = np.random.default_rng(clusters)
    p = np.array([mean_and_p(random.normal(size=clusters), 200) for _ in range(300)])
    assert (p < 0.05).mean() < 0.09


def test_a_clear_difference_stands_after_many_comparisons() -> None:
    gaps = np.random.default_rng(0).normal(0.5, 1.0, 400)
    p = mean_and_p(gaps)
    assert (
        p == pytest.approx(2 * stats.t.sf(gaps.mean() / stats.sem(gaps), 399), rel=1.0)
        and holm([p] + [0.9] * 400)[0] < 0.05
    )
    skewed = np.r_[np.full(390, 0.01), np.full(10, -0.2)]  # draws beyond 0 are more than the t test has
    draws = bootstrap_draws(mean_of(skewed), 400, seed=0)["mean"]
    assert bootstrap_p(draws, float(skewed.mean()), 400) >= 2 * (draws <= 0).mean() > 0


def test_p_over_seeds_and_images() -> None:
    random = np.random.default_rng(0)
    draws, values = random.normal(0.05, 0.004, 2000), [0.03, 0.05, 0.07]
    t = random.standard_t(2, (200, 2000)) * np.std(values, ddof=1) / math.sqrt(3)
    drawn = 2 * min((draws + t <= 0).mean(), (draws + t >= 0).mean())
    assert seeds_and_images_p(values, draws, 100) == pytest.approx(drawn, rel=0.05)
    # Never below that of the images alone, which it is for one seed or equal ones.
    wide = random.normal(0.05, 0.03, 2000)
    alone = bootstrap_p(wide, 0.05, 100)
    assert seeds_and_images_p([0.05], wide, 100) == alone == seeds_and_images_p([0.05] * 3, wide, 100)
    assert alone <= seeds_and_images_p([0.05 - 1e-9, 0.05, 0.05 + 1e-9], wide, 100) < 1.1 * alone + 0.02
