"""How sure a number is: bootstrap of clusters for any statistic, exact tests, corrections; numpy alone, and every draw from a seed.

A *cluster* is what was drawn independently: a picture with its copies and blends, a patient. A statistic is a function of the clusters'
weights, [B, C]: how often each cluster is in each of B resampled test sets. So one function serves the estimate (all weights 1), the
draws, and the jackknife of BCa (one weight 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

from .counts import Bools, Floats, Ints

RESAMPLES = 2000
FEW_CLUSTERS = 200  # below, "auto" takes BCa instead of percentiles
# A block of draws has at most this many weights: the bootstrap takes about 50 MB, whatever the number of images, besides what the
# statistic itself takes.
_NUMBERS = 1 << 20

Values = Mapping[str, Floats]  # of a statistic by name, [B] each; NaN where it is undefined
Statistic = Callable[[Floats], Values]
HowDrawn = Literal["auto", "percentile", "bca"]


class Interval(NamedTuple):
    """low, high: None where there is none: one cluster, draws that are all equal, an undefined statistic. method: how it was made."""

    estimate: float
    low: float | None
    high: float | None
    method: str


def of_sums(sums: Any, statistic: Callable[[Floats], Values]) -> Statistic:
    """A statistic of sums over clusters. sums: [C, P], dense or scipy.sparse, what each cluster adds; statistic: [B, P] -> values.

    It is called for a few draws at a time, whose sums take at most 8 MB (or are of one draw).
    """
    return _in_parts(lambda weights: statistic(np.asarray(weights @ sums)), sums.shape[1])


def of_images(member: Ints, statistic: Callable[[Floats], Values]) -> Statistic:
    """A statistic of weighted images, as a ranking is. member: [N], the cluster of each image; statistic: [B, N] -> values.

    It is called for a few draws at a time, whose weights take at most 8 MB (or are of one draw).
    """
    return _in_parts(lambda weights: statistic(weights[:, member]), len(member))


def _in_parts(statistic: Statistic, width: int) -> Statistic:
    """The statistic of a few rows at a time, so that [rows, width] numbers fill a block."""
    rows = max(1, _NUMBERS // max(1, width))

    def whole(weights: Floats) -> Values:
        return _joined(statistic(weights[start : start + rows]) for start in range(0, len(weights), rows))

    return whole


def _joined(parts: Iterable[Values]) -> dict[str, Floats]:
    listed = list(parts)
    return {name: np.concatenate([part[name] for part in listed]) for name in listed[0]}


def cluster_numbers(clusters: NDArray[Any]) -> tuple[Ints, int]:
    """(member [N] in 0..C-1, C) of cluster identities [N]; the number of a cluster doesn't depend on the order of images."""
    known, member = np.unique(clusters, return_inverse=True)
    return member.astype(np.int64), len(known)


def drawn_weights(clusters: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each cluster is drawn, float [b, C] at a time: C draws with replacement for each resampled test set."""
    random, block = np.random.default_rng(seed), max(1, _NUMBERS // clusters)
    for start in range(0, resamples, block):
        drawn = random.integers(clusters, size=(min(block, resamples - start), clusters))
        drawn += clusters * np.arange(len(drawn))[:, None]
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def bootstrap_draws(statistic: Statistic, clusters: int, *, seed: int, resamples: int = RESAMPLES) -> dict[str, Floats]:
    """The statistic of each resampled test set, [resamples] by name."""
    return _joined(statistic(weights) for weights in drawn_weights(clusters, resamples, seed))


def bootstrap_intervals(
    statistic: Statistic,
    clusters: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    method: HowDrawn = "auto",
    draws: Mapping[str, Floats] | None = None,
) -> dict[str, Interval]:
    """An interval of each value of a statistic, by drawing whole clusters with replacement (Davison & Hinkley 1997, section 3.8).

    method: "percentile"; "bca" (Efron 1987: bias z0, acceleration a by jackknife); "auto" is BCa for fewer than 200 clusters, and where
    BCa is undefined, percentile. Draws in which the statistic is undefined are left out; there is no interval if most are.
    draws: of `bootstrap_draws`, if they are there already.
    """
    if clusters < 1 or resamples < 1 or not 0 < level < 1:
        raise ValueError(f"needs clusters and resamples of at least 1, 0 < level < 1: {clusters}, {resamples}, {level}")
    estimates = {name: float(value[0]) for name, value in statistic(np.ones((1, clusters))).items()}
    if clusters == 1:
        return {name: Interval(value, None, None, "none") for name, value in estimates.items()}
    draws = draws if draws is not None else bootstrap_draws(statistic, clusters, seed=seed, resamples=resamples)
    left_out: Values = {}
    if method == "bca" or (method == "auto" and clusters < FEW_CLUSTERS):
        left_out = _jackknife(statistic, clusters)
    return {name: _interval(value, draws[name], left_out.get(name), level) for name, value in estimates.items()}


def _jackknife(statistic: Statistic, clusters: int) -> Values:
    """The statistic without each cluster in turn, [C]."""
    rows = max(1, _NUMBERS // clusters)
    return _joined(
        statistic((np.arange(clusters) != np.arange(start, min(start + rows, clusters))[:, None]).astype(np.float64))
        for start in range(0, clusters, rows)
    )


def _interval(estimate: float, draws: Floats, left_out: Floats | None, level: float) -> Interval:
    found = draws[np.isfinite(draws)]
    if not math.isfinite(estimate) or 2 * len(found) < len(draws) or found.min() == found.max():
        return Interval(estimate, None, None, "none")
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    corrected = None if left_out is None else _bca_tails(estimate, found, left_out, tails)
    low, high = np.quantile(found, tails if corrected is None else corrected)
    return Interval(estimate, float(low), float(high), "percentile" if corrected is None else "bca")


def _bca_tails(estimate: float, draws: Floats, left_out: Floats, tails: Floats) -> Floats | None:
    """The quantiles that BCa takes instead of `tails`; None where it is undefined."""
    share = ((draws < estimate).mean() + (draws <= estimate).mean()) / 2
    deviations = left_out.mean() - left_out
    scale = (deviations**2).sum() ** 1.5
    if not 0 < share < 1 or not scale > 0:  # also if a value of the jackknife is undefined
        return None
    z0, a = ndtri(share), (deviations**3).sum() / (6 * scale)
    z = z0 + ndtri(tails)
    return np.asarray(ndtr(z0 + z / (1 - a * z)))


def wilson(share: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of n independent trials (Wilson 1927); it has a width, and stays in 0..1, also at 0 and 1."""
    z = float(ndtri((1 + level) / 2))
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return (0.0 if share == 0 else max(0.0, low)), (1.0 if share == 1 else min(1.0, high))


def share_interval(
    correct: Bools, clusters: NDArray[Any], *, seed: int, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """The interval of a share of images, such as accuracy: Wilson's if at most one cluster has an error, or has none; else the bootstrap.

    correct: bool [N]; clusters: [N] identities. Wilson's counts clusters instead of images, since copies add nothing.
    """
    member, c = cluster_numbers(clusters)
    sizes, hits = np.bincount(member), np.bincount(member, correct.astype(np.float64))
    share = float(hits.sum() / sizes.sum())
    if few_errors(correct, member, c):
        return Interval(share, *wilson(share, c, level), "wilson")
    statistic = of_sums(np.stack([hits, sizes], axis=1), lambda sums: {"share": sums[:, 0] / sums[:, 1]})
    return bootstrap_intervals(statistic, c, seed=seed, resamples=resamples, level=level)["share"]


def few_errors(correct: Bools, member: Ints, clusters: int) -> bool:
    """Whether at most one cluster has an error, or at most one has none: then draws hardly differ. False for a single cluster.

    correct: bool [N]; member: [N] in 0..clusters-1.
    """
    wrong, right = (len(np.unique(member[which])) for which in (~correct, correct))
    return clusters > 1 and min(wrong, right) <= 1


def seeds_and_images_interval(
    values: Sequence[float],
    draws: Floats,
    *,
    seed: int,
    level: float = 0.95,
    span: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """The interval of a mean over training seeds that holds both the spread over seeds and that over test images.

    values: [S], the statistic of each seed; draws: [B], of resampled test images, the mean over the seeds each (`bootstrap_draws`).
    With one seed, it is the interval over images. Ends are clipped to `span`.
    """
    mean, found = float(np.mean(values)), _seeds_and_images_draws(values, draws, seed=seed)
    if 2 * len(found) < len(draws) or found.min() == found.max():
        return Interval(mean, None, None, "none")
    low, high = np.clip(np.quantile(found, [(1 - level) / 2, (1 + level) / 2]), *span)
    return Interval(mean, float(low), float(high), "images" if len(values) == 1 else "seeds and images")


def _seeds_and_images_draws(values: Sequence[float], draws: Floats, *, seed: int) -> Floats:
    """Draws of the mean over seeds and test images; those that are undefined are left out. Arguments: `seeds_and_images_interval`.

    To each draw over images comes one over seeds: Student's t with S - 1 degrees of freedom, s / sqrt(S) wide. Drawing the seeds with
    replacement, as images are, would make the interval of three seeds far too narrow.
    """
    found = draws[np.isfinite(draws)]
    if len(values) == 1:
        return found
    return found + _of_mean(values) * np.random.default_rng(seed).standard_t(len(values) - 1, size=len(found))


def bootstrap_p(draws: Floats, estimate: float, clusters: int) -> float:
    """Two-sided p of "the difference is 0". draws: [B] of `bootstrap_draws`; estimate: the difference itself, of so many clusters.

    It is Student's t of estimate / deviation of the draws, with clusters - 1 degrees of freedom, or the part of the draws beyond 0 if that
    is larger. (Draws alone would show differences of a handful of pictures that chance makes often, and no p below 2 / (B + 1), which
    Holm's method needs for many comparisons.) At least 2^(1 - clusters), the least that changing signs could show. 1 for one cluster.
    """
    found = draws[np.isfinite(draws)]
    if clusters < 2 or 2 * len(found) < len(draws) or not math.isfinite(estimate):
        return 1.0
    tail = min(int((found <= 0).sum()), int((found >= 0).sum()))
    # The draws deviate by sqrt((C - 1) / C) less than clusters do.
    deviation = float(found.std()) * math.sqrt(clusters / (clusters - 1))
    t = abs(estimate) / deviation if deviation else math.inf
    student = 2 * float(stdtr(clusters - 1, -t)) if estimate else 1.0
    return min(1.0, max(2 * tail / len(found), student, 2.0 ** (1 - clusters)))


def seeds_and_images_p(values: Sequence[float], draws: Floats, clusters: int) -> float:
    """Two-sided p of "the mean difference is 0" over seeds and test images. Arguments: `seeds_and_images_interval` and `bootstrap_p`.

    The mean over the draws of the tail of that Student's t which `_seeds_and_images_draws` adds; at least that of the images alone.
    """
    images_alone = bootstrap_p(draws, float(np.mean(values)), clusters)
    if len(values) == 1 or not (spread := _of_mean(values)):
        return images_alone
    found = draws[np.isfinite(draws)]
    low, high = (float(stdtr(len(values) - 1, sign * found / spread).mean()) for sign in (-1.0, 1.0))
    return min(1.0, max(2 * min(low, high), images_alone))


def _of_mean(values: Sequence[float]) -> float:
    """The standard error of a mean over seeds, of two or more."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def mcnemar(first: Bools, second: Bools) -> tuple[int, int, float]:
    """(b, c, p): images that only the first, only the second, has right, and the exact two-sided p (McNemar 1947).

    p = 2 P(Bin(b + c, 1/2) <= min(b, c)), at most 1. first, second: bool [N], image by image. Images count as independent.
    """
    if first.shape != second.shape:
        raise ValueError(f"both must be of the same images, got {first.shape} and {second.shape}")
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    return b, c, min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5))) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p adjusted for as many comparisons (Holm 1979): which are below 0.05 holds for all of them together with 95 %."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def nadeau_bengio(
    differences: Sequence[float], n_train: int, n_test: int, level: float = 0.95
) -> tuple[float, float | None, float | None]:
    """(mean, low, high) over k folds or repeated splits, whose training sets overlap (Nadeau & Bengio 2003, eq. 9).

    The variance of the mean is (1/k + n_test / n_train) s^2 instead of s^2 / k. No interval for one fold.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) == 0 or n_train < 1 or n_test < 1:
        raise ValueError("needs at least one difference, and images to train and to test on")
    mean, k = float(d.mean()), len(d)
    if k == 1:
        return mean, None, None
    half = float(stdtrit(k - 1, (1 + level) / 2)) * math.sqrt((1 / k + n_test / n_train) * float(d.var(ddof=1)))
    return mean, mean - half, mean + half
