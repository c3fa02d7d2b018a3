"""Whether probabilities mean what they say: likelihood, calibration error with its floor, temperature scaling; numpy alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from .counts import Bools, Floats, Ints

BINS = 15
LARGEST_BIAS = 30.0  # of a class: e^30 in its odds
FLOOR_DRAWS = 200
COOLEST, HOTTEST = 1e-3, 1e3  # range of the temperature
_BLOCK = 1 << 20  # random numbers drawn at a time (8 MB)
_STEPS = 100


class Bin(NamedTuple):
    """One bin of a reliability diagram: images, their mean confidence, and their accuracy."""

    images: float
    confidence: float
    accuracy: float


class BiasCorrected(NamedTuple):
    """softmax(logits * beta + bias), beta = 1 / T; bias: [K]."""

    beta: float
    bias: Floats

    def log_probabilities(self, logits: NDArray[np.floating]) -> Floats:
        """log p, [N, K]."""
        return log_softmax(logits.astype(np.float64) * self.beta + self.bias, axis=1)


class Temperature(NamedTuple):
    """value: T. steps: of Newton's method. at_bound: whether the best T lies beyond the range, as for labels that all are right."""

    value: float
    steps: int
    at_bound: bool


def probabilities(scores: NDArray[np.floating], kind: str) -> Floats | None:
    """Probabilities of the classes in float64, [N, K]; None for scores that are none (votes, similarities).

    kind: "logits" (softmax) or "probabilities" (divided by their sum, which rounding moves off 1).
    """
    if kind == "logits":
        return softmax(scores.astype(np.float64), axis=-1)
    if kind == "probabilities":
        wide = scores.astype(np.float64)
        return wide / wide.sum(axis=-1, keepdims=True)
    return None


def log_likelihood(scores: NDArray[np.floating], labels: Ints, kind: str) -> Floats:
    """log p of each image's label, [N], in nats. Probabilities below 2.2e-16 count as that, as in scikit-learn's log_loss."""
    if kind == "logits":
        logs = log_softmax(scores.astype(np.float64), axis=-1)
        return np.take_along_axis(logs, labels[:, None], axis=1)[:, 0]
    p = probabilities(scores, kind)
    if p is None:
        raise ValueError(f"{kind} are no probabilities, so they have no likelihood")
    least = float(np.finfo(np.float64).eps)
    return np.log(np.clip(np.take_along_axis(p, labels[:, None], axis=1)[:, 0], least, 1.0))


def squared_error(p: Floats, labels: Ints) -> Floats:
    """Brier score of each image, [N]: sum over classes of (p - onehot)^2, 0 to 2. p: [N, K]."""
    own = np.take_along_axis(p, labels[:, None], axis=1)[:, 0]
    return np.maximum((p * p).sum(axis=1) - 2 * own + 1, 0.0)


def bins_of(confidence: Floats, bins: int = BINS, *, equal_mass: bool = False) -> Ints:
    """The bin of each image, 0..bins-1: of equal width, (b/bins, (b+1)/bins], or of equally many images (equal ones stay together)."""
    if not equal_mass:
        return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    _, value, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - sizes / 2  # the mid-rank of a value
    return np.minimum((middle[value] * bins / len(confidence)).astype(np.int64), bins - 1)


def reliability(confidence: Floats, correct: Bools, bins: int = BINS, *, equal_mass: bool = False) -> list[Bin]:
    """The bins that hold images, in order. confidence: [N] in 0..1, the highest probability; correct: bool [N]."""
    where = bins_of(confidence, bins, equal_mass=equal_mass)
    sizes, sure, right = (np.bincount(where, w, minlength=bins) for w in (None, confidence, correct.astype(np.float64)))
    return [Bin(float(n), float(s / n), float(r / n)) for n, s, r in zip(sizes, sure, right, strict=True) if n]


def calibration_error(confidence: Floats, correct: Bools, bins: int = BINS, *, equal_mass: bool = False) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3): sum over bins of n_b / n |accuracy - confidence|.

    Arguments: as of `reliability`. Chance alone makes it positive, by about sqrt(bins / n): see `calibration_floor`.
    """
    where = bins_of(confidence, bins, equal_mass=equal_mass)
    gap = np.bincount(where, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def calibration_floor(confidence: Floats, *, seed: int, bins: int = BINS, draws: int = FLOOR_DRAWS) -> float:
    """The mean `calibration_error` of a perfectly calibrated model of these confidences: each image is right with its probability.

    Drawn `draws` times; the order of images doesn't matter.
    """
    ordered = np.sort(confidence)
    starts = np.flatnonzero(np.r_[True, np.diff(bins_of(ordered, bins)) > 0])
    random, found = np.random.default_rng(seed), list[Floats]()
    for begin in range(0, draws, block := max(1, _BLOCK // len(ordered))):
        right = random.random((min(block, draws - begin), len(ordered))) < ordered
        gaps = np.add.reduceat(right - ordered, starts, axis=1)
        found.append(np.abs(gaps).sum(axis=1) / len(ordered))
    return float(np.concatenate(found).mean())


def fit_temperature(logits: NDArray[np.floating], labels: Ints) -> Temperature:
    """The T that minimises the mean NLL of softmax(logits / T), on held-out *training* images (Guo et al. 2017, section 4.2).

    logits: [N, K], minus infinity for classes that the classifier doesn't know; labels: [N], none of these. Newton's method on u = log T,
    kept inside a bracket; 1e-3 <= T <= 1e3. No prediction changes: T > 0.
    """
    z = logits.astype(np.float64)
    z = np.maximum(
        z - z.max(axis=1, keepdims=True), np.finfo(np.float32).min
    )  # finite, since 0 * infinity is no number
    own = np.take_along_axis(z, labels[:, None], axis=1)[:, 0]

    def slopes(u: float) -> tuple[float, float]:
        """First and second derivative of the mean NLL by u."""
        beta = math.exp(-u)
        p = softmax(z * beta, axis=1)
        mean = (p * z).sum(axis=1)
        first = float((own - mean).mean()) * beta
        return first, -first + float(((p * z * z).sum(axis=1) - mean * mean).mean()) * beta * beta

    low, high = math.log(COOLEST), math.log(HOTTEST)
    # The NLL is convex in 1 / T, so its slope by u changes its sign at most once.
    if slopes(low)[0] >= 0:
        return Temperature(COOLEST, 0, True)
    if slopes(high)[0] <= 0:
        return Temperature(HOTTEST, 0, True)
    u = 0.0
    for step in range(1, _STEPS + 1):
        first, second = slopes(u)
        low, high = (u, high) if first < 0 else (low, u)
        following = u - first / second if second > 0 else math.nan
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - u) <= 1e-12 * max(1.0, abs(u)):
            return Temperature(math.exp(following), step, False)
        u = following
    return Temperature(math.exp(u), _STEPS, False)


def fit_bias_corrected(logits: NDArray[np.floating], labels: Ints) -> BiasCorrected:
    """Bias-corrected temperature scaling (Alexandari et al. 2020, arXiv:1901.06852): T and a bias for each class, of least NLL.

    logits: finite, [N, K]; labels: [N], of held-out *training* images. Convex in (1 / T, bias). At the minimum the mean
    probability of each class is its frequency, which is what prior correction needs, and temperature alone does not give.
    Bounded: 1e-3 <= T <= 1e3, |bias| <= 30; a class without images ends at the bound.
    """
    from scipy.optimize import minimize  # takes half a second to import

    z = logits.astype(np.float64)
    n, classes = z.shape
    hits = np.zeros((n, classes))
    hits[np.arange(n), labels] = 1.0

    def loss(point: Floats) -> tuple[float, Floats]:
        logs = log_softmax(z * point[0] + point[1:], axis=1)
        excess = (np.exp(logs) - hits) / n
        return -float((logs * hits).sum() / n), np.r_[(excess * z).sum(), excess.sum(axis=0)]

    bounds = [(1 / HOTTEST, 1 / COOLEST), *[(-LARGEST_BIAS, LARGEST_BIAS)] * classes]
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(loss, np.r_[1.0, np.zeros(classes)], jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return BiasCorrected(float(found.x[0]), found.x[1:])
