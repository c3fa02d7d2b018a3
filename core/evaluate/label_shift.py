"""Label shift: p(y) differs between source and target, p(x | y) does not. Target priors without target labels; numpy alone.

Two estimates. BBSE (Lipton et al. 2018, arXiv:1802.03916) needs of the classifier only that its confusion matrix can be inverted.
MLLS (Saerens et al. 2002) maximises the likelihood of the target and needs calibrated probabilities: bias-corrected temperature
scaling on held-out source images, `calibration.fit_bias_corrected` (Alexandari et al. 2020, arXiv:1901.06852). Where p(x | y)
shifts too, both are biased, so an interval here says only how much images that were drawn anew would move an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .counts import Floats, Ints
from .statistics import cluster_numbers

SQP_STEPS, SQP_TOLERANCE = 200, 1e-10
LARGEST_CONDITION = 1e8  # of a confusion matrix that is inverted
DRAWN_ANEW = 200


class Priors(NamedTuple):
    """An estimate of the target's class priors.

    target: [K], 0 or more, summing to 1. weights: [K], w(y) = target / source; 0 for a class without source images.
    inverted: BBSE alone: whether the confusion matrix was inverted; else its constrained least squares were solved. steps: of MLLS.
    """

    target: Floats
    weights: Floats
    inverted: bool = True
    steps: int = 0


def class_priors(labels: Ints, classes: int) -> Floats:
    """The share of each class, [K]. labels: int64 [N], N >= 1."""
    if len(labels) == 0:
        raise ValueError("no labels, so no class priors")
    return np.bincount(labels, minlength=classes) / len(labels)


def total_variation(p: Floats, q: Floats) -> float:
    """Half the sum of |p - q|, 0 to 1: the share of images whose class would have to change."""
    return float(np.abs(p - q).sum() / 2)


def hellinger(p: Floats, q: Floats) -> float:
    """sqrt(1 - sum sqrt(p q)), 0 to 1."""
    return float(np.sqrt(max(0.0, 1.0 - np.sqrt(p * q).sum())))


def jensen_shannon(p: Floats, q: Floats) -> float:
    """The Jensen-Shannon divergence in nats, 0 to log 2; finite where a class is absent."""
    middle = (p + q) / 2
    logs = [np.log(np.divide(x, middle, out=np.ones_like(middle), where=x > 0)) for x in (p, q)]
    return float(max(0.0, ((p * logs[0]).sum() + (q * logs[1]).sum()) / 2))


def largest_ratio(p: Floats, q: Floats) -> float:
    """The largest q / p over classes that p has: the largest importance weight."""
    return float((q[p > 0] / p[p > 0]).max())


# Distances of priors [K] of the source and of the target, by the names of results.
DISTANCES: Mapping[str, Callable[[Floats, Floats], float]] = {
    "total_variation": total_variation,
    "hellinger": hellinger,
    "jensen_shannon": jensen_shannon,
    "largest_ratio": largest_ratio,
}


def distances(source: Floats, target: Floats) -> dict[str, float]:
    """Every distance of `DISTANCES` by name."""
    return {name: measured(source, target) for name, measured in DISTANCES.items()}


def one_hot_of(scores: NDArray[np.floating]) -> Floats:
    """The highest class of each row as 1, [N, K]; of equals the first."""
    return np.eye(scores.shape[1])[scores.argmax(axis=1)]


def confusion_given_class(predicted: Floats, labels: Ints) -> Floats:
    """p(prediction = i | y = j), [K, K]; a column of zeros for a class without images.

    predicted: [N, K], rows that sum to 1: `one_hot_of` for the hard confusion matrix, probabilities for the soft one.
    """
    classes = predicted.shape[1]
    sums = np.zeros((classes, classes))
    np.add.at(sums, labels, predicted)
    counts = np.bincount(labels, minlength=classes)
    return (sums / np.maximum(counts, 1)[:, None]).T


def bbse(source: Floats, labels: Ints, target: Floats) -> Priors:
    """Black-box shift estimation: the q with C q = mu; C = p(prediction | y) of the source, mu = p(prediction) of the target.

    source: [N, K], predictions for *held-out* source images with these labels, int64 [N]; target: [M, K], all rows summing to 1; one-hot
    (hard) or probabilities (soft). With w = q / p_s this is the paper's equation for w (section 4). The inverse may give negative
    priors, which the authors' code clips to 0. Then, and where C is singular, min ||C q - mu||^2 over priors (q >= 0, sum 1) is solved.
    Classes without source images get prior 0.
    """
    return _solved(confusion_given_class(source, labels), target.mean(axis=0), class_priors(labels, source.shape[1]))


def _solved(confusion: Floats, predicted: Floats, prior: Floats) -> Priors:
    """C [K, K] by columns, mu [K], p_s [K] -> priors with C q = mu, or the nearest ones."""
    there = prior > 0
    columns, found = confusion[:, there], np.zeros(len(prior))
    if there.all() and np.linalg.cond(columns) < LARGEST_CONDITION:
        exact = np.linalg.solve(columns, predicted)
        if (exact >= 0).all():  # columns and mu sum to 1, so it does as well, up to rounding
            found = exact / exact.sum()
            return Priors(found, _ratio(found, prior))
    found[there] = _on_simplex(columns, predicted)
    return Priors(found, _ratio(found, prior), inverted=False)


def _on_simplex(columns: Floats, aim: Floats) -> Floats:
    """The q >= 0 with sum 1 that minimises ||columns q - aim||^2, exactly, by non-negative least squares (Lawson & Hanson 1974).

    With sum 1 the objective is ||B q||^2, B = columns - aim. For x = t q, ||B x||^2 + (sum x - 1)^2 is least at
    t = 1 / (1 + ||B q||^2), where it is ||B q||^2 / (1 + ||B q||^2). So the x that minimises it has the direction of the q that is sought.
    """
    stacked = np.vstack([columns - aim[:, None], np.ones(columns.shape[1])])
    x = _not_negative(stacked, np.r_[np.zeros(len(aim)), 1.0])
    return x / x.sum()


def _not_negative(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """The x >= 0 of least |a x - b|."""
    from scipy.optimize import nnls  # takes half a second to import

    return nnls(a, b, maxiter=100 * a.shape[1])[0]


def mlls(target: Floats, prior: Floats, start: Floats | None = None, rows: Floats | None = None) -> Priors:
    """Maximum likelihood of the target's priors (Saerens et al. 2002, whose EM, eq. 9, climbs to the same maximum).

    target: [M, K], probabilities p_s(y | x) of the target's images. prior: [K], the source's priors to which these belong: for calibrated
    ones both the label frequencies and their own mean over held-out source images. start: priors to begin with; by default the source's.
    rows: [M], how often each image counts. The likelihood is concave in the priors. A class of prior 0 keeps it. Where several priors
    are equally likely, such as with fewer images than classes, it is one near the start.
    """
    there = prior > 0
    ratios = target[:, there] / prior[there]  # p(x | y) up to a factor of x
    largest = ratios.max(axis=1)
    share = np.ones(len(target)) if rows is None else rows
    said = (largest > 0) & (share > 0)  # an image that no class explains, or that was not drawn, says nothing of them
    begin = np.maximum(prior if start is None else start, 1e-12)[there]
    found, step = begin / begin.sum(), 0
    if said.any():
        found, step = _most_likely(ratios[said] / largest[said, None], share[said] / share[said].sum(), found)
    priors = np.zeros(len(prior))
    priors[there] = found
    return Priors(priors, _ratio(priors, prior), steps=step)


def _most_likely(ratios: Floats, share: Floats, q: Floats) -> tuple[Floats, int]:
    """The q >= 0 with sum 1 that maximises the sum of share * log(ratios q), and the number of steps.

    The sum constraint is not needed: f(q) = sum(q) - sum(share log(ratios q)) is least over q >= 0 where q sums to 1. Each step solves
    f's quadratic model by non-negative least squares, and goes as far towards that as f falls enough: mixSQP (Kim et al. 2020,
    arXiv:1806.01412). A dozen steps reach the rounding of float64, where EM takes thousands. ratios: [M, K]; share: [M], above 0, sum 1.
    """
    step, root = 0, np.sqrt(share)

    def objective(at: Floats) -> float:
        mixed = ratios @ at
        if (mixed <= 0).any():
            return np.inf
        return float(at.sum() - share @ np.log(mixed))

    value = objective(q)
    for step in range(1, SQP_STEPS + 1):  # noqa: B007
        scaled = (root / (ratios @ q))[:, None] * ratios
        slope = 1.0 - root @ scaled
        if np.abs(np.minimum(slope, q)).max() < SQP_TOLERANCE:  # complementary slackness
            break
        curvature = scaled.T @ scaled
        curvature[np.diag_indices_from(curvature)] += 1e-10 * max(1.0, np.trace(curvature) / len(q))
        lower = np.linalg.cholesky(curvature)
        aim = _not_negative(lower.T, np.linalg.solve(lower, curvature @ q - slope))
        length, falls = 1.0, float(slope @ (aim - q))
        while (found := objective(q + length * (aim - q))) > value + 0.01 * length * falls and length > 1e-10:
            length /= 2
        if length <= 1e-10:  # at the rounding of f
            break
        q, value = q + length * (aim - q), found
    return q / q.sum(), step


def _ratio(target: Floats, prior: Floats) -> Floats:
    return np.divide(target, prior, out=np.zeros_like(target), where=prior > 0)


def corrected(log_probabilities: NDArray[np.floating], weights: Floats) -> Floats:
    """log of p_t(y | x), [N, K], proportional to p_s(y | x) w(y) (Saerens et al. 2002, eq. 4). A class of weight 0 gets minus infinity.

    log_probabilities: [N, K], log p_s(y | x) up to a constant of each row; weights: [K], not all 0.
    """
    with np.errstate(divide="ignore"):
        moved = log_probabilities.astype(np.float64) + np.log(weights)
    return moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)


def balancing(priors: Floats) -> Floats:
    """Weights w(y) = 1 / (K' p(y)), [K], under which all K' classes that occur weigh the same, and whose mean over the set is 1.

    So weighted, a mean loss is that of images re-sampled to equal class frequencies (RLSbench, arXiv:2302.03020), without the
    noise of drawing. 0 for a class that does not occur.
    """
    there = priors > 0
    return np.divide(1.0, priors * there.sum(), out=np.zeros_like(priors), where=there)


def bootstrap(
    source: Floats,
    labels: Ints,
    target: Floats,
    *,
    method: str,
    seed: int,
    distance: str = "total_variation",
    resamples: int = DRAWN_ANEW,
    calibrated: Callable[[Ints], Floats] | None = None,
    units: tuple[Ints, Ints] | None = None,
) -> tuple[float, float]:
    """The 95 % percentile interval (low, high) of the distance of priors that `bbse` or `mlls` (`method`) estimates. Arguments as of these.

    Source images are drawn with replacement within their class, target images among all; with `units` whole units are, such as all
    images of a patient: int64 [N] of the source's and [M] of the target's images, equal numbers for one unit. The distance is that of
    the source's own priors, which are known. Near 0 the interval lies above it: no distance is negative. calibrated: (rows of the source,
    int64 [n]) -> the target's probabilities [M, K] by a calibration on these rows; `mlls` reads of the source nothing else. Without it the
    calibration is taken as known, which it is not on few images.
    """
    random, found = np.random.default_rng(seed), list[float]()
    prior = class_priors(labels, source.shape[1])
    begin = mlls(target, prior).target if method == "mlls" else prior
    ours, theirs = (np.arange(len(labels)), np.arange(len(target))) if units is None else units
    member, count = cluster_numbers(theirs)
    classes = [_Drawing(np.flatnonzero(labels == k), ours) for k in np.unique(labels)]
    for _ in range(resamples):
        rows = random.multinomial(count, np.full(count, 1 / count)).astype(np.float64)[member]
        picked = np.concatenate([rows_of_class(random) for rows_of_class in classes])
        if method == "mlls":
            drawn = mlls(target if calibrated is None else calibrated(picked), prior, begin, rows).target
        else:
            confusion = confusion_given_class(source[picked], labels[picked])
            drawn = _solved(confusion, rows @ target / rows.sum(), prior).target
        found.append(DISTANCES[distance](prior, drawn))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


class _Drawing:
    """Draws units of some rows with replacement, as many as there are, and gives all rows of each."""

    def __init__(self, rows: Ints, units: Ints) -> None:
        """rows: [n] of the set; units: [N], of every row of the set."""
        member, self.count = cluster_numbers(units[rows])
        self.rows, self.sizes = rows[np.argsort(member, kind="stable")], np.bincount(member)
        self.starts = np.cumsum(self.sizes) - self.sizes

    def __call__(self, random: np.random.Generator) -> Ints:
        drawn = random.choice(self.count, self.count)
        sizes = self.sizes[drawn]
        first = np.repeat(self.starts[drawn] - (np.cumsum(sizes) - sizes), sizes)
        return self.rows[first + np.arange(len(first))]
