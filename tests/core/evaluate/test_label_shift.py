"""Target priors without target labels: against slow versions, a closed-form case, and what each estimate must do."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from rootstock.core.evaluate import label_shift
from rootstock.core.evaluate.calibration import fit_bias_corrected, fit_temperature
from rootstock.core.evaluate.label_shift import (
    DISTANCES,
    balancing,
    bbse,
    bootstrap,
    class_priors,
    confusion_given_class,
    corrected,
    distances,
    mlls,
    one_hot_of,
)

K = 4
SKEWED = np.array([0.55, 0.25, 0.15, 0.05])
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def drawn(prior: Floats, n: int, seed: int, spread: float = 1.3) -> tuple[Floats, NDArray[np.int64]]:
    """Images of Gaussian classes, x | y ~ N(mu_y, I): their exact log-likelihoods log p(x | y) and labels."""
    random = np.random.default_rng(seed)
    labels = random.choice(len(prior), n, p=prior)
    x = spread * np.eye(len(prior))[labels] + random.normal(size=(n, len(prior)))
    return -((x[:, None] - spread * np.eye(len(prior))) ** 2).sum(2) / 2, labels


def posterior(likelihood: Floats, prior: Floats) -> Floats:
    return softmax(likelihood + np.log(prior), axis=1)


def test_two_classes_have_a_closed_form() -> None:
    """Hits of 90 % and 70 %, a target predicted as class 0 at rate r: q = (r - 0.3) / 0.6."""
    source = np.repeat(np.eye(2), [9, 1], axis=0), np.repeat(np.eye(2), [3, 7], axis=0)
    labels = np.repeat([0, 1], 10)
    for rate in (0.3, 0.5, 0.8, 0.9):
        target = np.repeat(np.eye(2), [round(rate * 10), round((1 - rate) * 10)], axis=0)
        found = bbse(np.concatenate(source), labels, target)
        assert found.target[0] == pytest.approx((rate - 0.3) / 0.6, abs=1e-12)
        assert found.weights == pytest.approx(found.target / 0.5)


def test_the_confusion_matrix_is_a_loop_over_images() -> None:
    predicted, labels = (
        posterior(*(likelihood_and_labels := drawn(SKEWED, 60, 0))[:1], SKEWED),
        likelihood_and_labels[1],
    )
    slow = np.zeros((K, K))
    for j in range(K):
        rows = [p for p, label in zip(predicted, labels, strict=True) if label == j]
        slow[:, j] = sum(rows) / len(rows)
    assert confusion_given_class(predicted, labels) == pytest.approx(slow, abs=1e-14)


@pytest.mark.parametrize("hard", [True, False])
def test_bbse_solves_the_papers_equation(hard: bool) -> None:
    """With the joint confusion matrix C_ij = mean of [prediction i, label j] (eq. 3), w = C^-1 mu and q = w p."""
    (source, labels), (target, _) = drawn(np.full(K, 0.25), 3000, 1), drawn(SKEWED, 3000, 2)
    rows = [posterior(x, np.full(K, 0.25)) for x in (source, target)]
    rows = [one_hot_of(r) if hard else r for r in rows]
    joint = np.zeros((K, K))
    for row, label in zip(rows[0], labels, strict=True):
        joint[:, label] += row / len(labels)
    weights = np.linalg.inv(joint) @ rows[1].mean(axis=0)
    found = bbse(rows[0], labels, rows[1])
    assert found.inverted and found.weights == pytest.approx(weights, abs=1e-10)
    assert found.target == pytest.approx(SKEWED, abs=0.05)


def test_the_constrained_least_squares_are_the_best_priors_of_a_grid() -> None:
    """The inverse gives negative priors: clipping them, as the authors' code does, is worse."""
    confusion = np.array([[0.6, 0.3, 0.2], [0.2, 0.4, 0.3], [0.2, 0.3, 0.5]])
    mu = np.array([0.7, 0.2, 0.1])
    exact = np.linalg.solve(confusion, mu)
    assert exact.min() < 0
    labels = np.repeat([0, 1, 2], 10)
    source = np.concatenate([np.repeat(np.eye(3), np.rint(10 * confusion[:, j]).astype(int), axis=0) for j in range(3)])
    found = bbse(source, labels, np.repeat(np.eye(3), [7, 2, 1], axis=0))
    assert not found.inverted and found.target.min() >= 0 and found.target.sum() == pytest.approx(1)

    def error(q: Floats) -> float:
        return float(((confusion @ q - mu) ** 2).sum())

    grid = [np.array([a, b, 100 - a - b]) / 100 for a, b in itertools.product(range(101), repeat=2) if a + b <= 100]
    assert error(found.target) <= min(error(q) for q in grid) + 1e-12
    clipped = np.maximum(exact, 0) / np.maximum(exact, 0).sum()
    assert error(found.target) < error(clipped) - 1e-6


def test_a_singular_confusion_matrix_gives_priors() -> None:
    """Classes 1 and 2 are never told apart."""
    rows = np.repeat(np.eye(3)[[0, 1]], [10, 20], axis=0)
    found = bbse(rows, np.repeat([0, 1, 2], 10), np.repeat(np.eye(3)[[0, 1]], [5, 15], axis=0))
    assert not found.inverted and found.target[0] == pytest.approx(0.25)
    assert found.target[1:].sum() == pytest.approx(0.75)


def test_mlls_ends_where_saerens_loop_does() -> None:
    target = posterior(drawn(SKEWED, 200, 3)[0], prior := np.array([0.4, 0.3, 0.2, 0.1]))
    q = prior.copy()
    for _ in range(5000):
        new = np.zeros(K)
        for row in target:
            share = [q[k] / prior[k] * row[k] for k in range(K)]
            new += np.array(share) / sum(share) / len(target)
        moved, q = abs(new - q).sum(), new
        if moved < 1e-9:
            break
    found = mlls(target, prior)
    assert found.target == pytest.approx(q, abs=1e-8) and found.weights == pytest.approx(q / prior, abs=1e-6)


def test_mlls_maximises_the_likelihood_from_any_start() -> None:
    target = posterior(drawn(SKEWED, 400, 4)[0], prior := np.full(K, 0.25))
    found = mlls(target, prior).target

    def likelihood(q: Floats) -> float:
        return float(np.log(target @ (q / prior)).mean())

    random = np.random.default_rng(0)
    for q in random.dirichlet(np.ones(K), 50):
        near = 0.95 * found + 0.05 * q
        assert likelihood(near) <= likelihood(found) + 1e-12
    assert mlls(target, prior, start=np.array([0.01, 0.01, 0.01, 0.97])).target == pytest.approx(found, abs=1e-6)


def test_no_priors_are_more_likely_than_those_found() -> None:
    """The likelihood is concave: with g = its gradient at q, no priors are more likely by more than max(g) - 1. Also where classes are
    equal, all images are equal, images are fewer than classes, probabilities underflow, and classes or images do not count.
    """
    random = np.random.default_rng(0)
    for number in range(300):
        classes, images = int(random.integers(2, 30)), int(random.integers(1, 200))
        logits = random.normal(size=(images, classes)) * 10 ** random.uniform(-3, 2.5)
        logits = logits[:1].repeat(images, axis=0) if number % 7 == 0 else logits
        logits[:, 1] = logits[:, 0] if number % 11 == 0 else logits[:, 1]
        target, prior = softmax(logits, axis=1), random.dirichlet(np.full(classes, 0.5))
        if number % 5 == 0:
            prior = np.r_[0.0, prior[1:] / prior[1:].sum()]
        counts = np.ones(images)
        if number % 2:
            counts = random.multinomial(images, counts / images).astype(np.float64)
        q = mlls(target, prior, rows=counts).target
        assert q.min() >= 0 and q.sum() == pytest.approx(1, abs=1e-12) and (q[prior == 0] == 0).all()
        ratios = target[:, prior > 0] / prior[prior > 0]
        said = ratios.max(axis=1) > 0
        share = counts[said] / max(counts[said].sum(), 1.0)
        mixed = np.maximum(ratios[said] @ q[prior > 0], np.finfo(np.float64).tiny)
        assert (share / mixed @ ratios[said]).max() - 1 < 1e-6


def test_images_that_were_not_drawn_say_nothing_of_the_priors() -> None:
    """Not even where no class that is left explains them: 0 times an infinite ratio is no number."""
    target = np.array([[1.0, 0.0, 0.0]] * 4 + [[0.0, 1.0, 0.0]] * 3 + [[0.0, 0.0, 1.0]])
    rows, prior = np.array([1.0, 2.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0]), np.full(3, 1 / 3)
    with np.errstate(all="raise"):
        found = mlls(target, prior, rows=rows)
    assert found.target == pytest.approx([4 / 6, 2 / 6, 0.0], abs=1e-9) and found.target[2] == 0.0
    assert found.target == pytest.approx(mlls(target[rows > 0], prior, rows=rows[rows > 0]).target, abs=1e-9)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    low, high = bootstrap(target, labels, target, method="mlls", seed=0, resamples=200)
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("estimate", ["bbse", "mlls"])
def test_without_shift_every_weight_is_one(estimate: str) -> None:
    """On the very same images: exactly, since both estimates have the source's priors as their solution."""
    likelihood, labels = drawn(SKEWED, 2000, 5)
    prior = class_priors(labels, K)
    if estimate == "bbse":
        rows = posterior(likelihood, SKEWED)
        assert bbse(rows, labels, rows).weights == pytest.approx(np.ones(K), abs=1e-9)
    else:  # calibrated on these images, so that the mean probability of each class is its frequency
        rows = np.exp(fit_bias_corrected(2 * likelihood, labels).log_probabilities(2 * likelihood))
        assert rows.mean(axis=0) == pytest.approx(prior, abs=1e-6)
        assert mlls(rows, prior).weights == pytest.approx(np.ones(K), abs=1e-4)


@pytest.mark.parametrize("estimate", ["bbse", "mlls"])
def test_permuted_classes_give_permuted_priors(estimate: str) -> None:
    (source, labels), (target, _) = drawn(np.full(K, 0.25), 500, 6), drawn(SKEWED, 500, 7)
    order = np.array([2, 0, 3, 1])  # new class j is the old class order[j]
    place = np.argsort(order)
    rows = [posterior(x, np.full(K, 0.25)) for x in (source, target)]

    def found(first: Floats, known: NDArray[np.int64], second: Floats) -> Floats:
        return (bbse(first, known, second) if estimate == "bbse" else mlls(second, class_priors(known, K))).target

    plain, moved = found(rows[0], labels, rows[1]), found(rows[0][:, order], place[labels], rows[1][:, order])
    assert moved == pytest.approx(plain[order], abs=1e-6)


def test_an_absent_class_has_prior_0() -> None:
    (source, labels), (target, _) = drawn(np.array([0.5, 0.5, 0.0]), 300, 8), drawn(np.array([0.2, 0.8, 0.0]), 300, 9)
    rows = [softmax(x, axis=1) for x in (source, target)]
    for found in (bbse(rows[0], labels, rows[1]), mlls(rows[1], class_priors(labels, 3))):
        assert found.target[2] == found.weights[2] == 0 and np.isfinite(found.weights).all()
        assert found.target[1] > 0.6


def test_calibration_needs_the_bias() -> None:
    """A classifier of biased logits: temperature alone leaves EM far off, the bias brings it to the truth (section 4 of the paper)."""
    (source, labels), (target, truth) = drawn(np.full(K, 0.25), 4000, 10), drawn(SKEWED, 4000, 11)
    bias = np.array([0.0, 1.5, -1.0, 0.5])
    source, target = 3 * source + bias, 3 * target + bias
    found = fit_bias_corrected(source, labels)
    assert 1 / found.beta == pytest.approx(3, rel=0.1)
    prior, true = class_priors(labels, K), class_priors(truth, K)
    whole = mlls(np.exp(found.log_probabilities(target)), prior).target
    cooled = mlls(softmax(target / fit_temperature(source, labels).value, axis=1), prior).target
    assert label_shift.total_variation(whole, true) < 0.03 < label_shift.total_variation(cooled, true)


def test_bias_corrected_scaling_is_at_its_minimum_and_bounded() -> None:
    logits, labels = drawn(SKEWED, 300, 12)
    found = fit_bias_corrected(logits, labels)

    def loss(beta: float, bias: Floats) -> float:
        return -float(np.log(softmax(logits * beta + bias, axis=1))[np.arange(len(labels)), labels].mean())

    least = loss(found.beta, found.bias)
    for i, step in itertools.product(range(K + 1), (-0.02, 0.02)):
        moved = np.r_[found.beta, found.bias]
        moved[i] += step
        assert loss(float(moved[0]), moved[1:]) > least
    perfect = fit_bias_corrected(20 * np.eye(3), np.arange(3))
    assert np.isfinite(perfect.bias).all() and math.isfinite(perfect.beta)


def test_correction_is_bayes_rule() -> None:
    """p_s corrected by the true weights is the posterior under the target's priors, and weights of 1 change nothing."""
    likelihood, _ = drawn(SKEWED, 50, 13)
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    logs = np.log(posterior(likelihood, prior))
    assert np.exp(corrected(logs + 7.0, SKEWED / prior)) == pytest.approx(posterior(likelihood, SKEWED), abs=1e-12)
    assert corrected(logs, np.ones(K)) == pytest.approx(logs, abs=1e-12)
    assert np.exp(corrected(logs, np.array([1.0, 1.0, 0.0, 1.0])))[:, 2].max() == 0


def test_correction_gains_accuracy_under_shift() -> None:
    (source, labels), (target, truth) = drawn(np.full(K, 0.25), 3000, 14), drawn(SKEWED, 3000, 15)
    rows = [posterior(x, np.full(K, 0.25)) for x in (source, target)]
    weights = bbse(one_hot_of(rows[0]), labels, one_hot_of(rows[1])).weights
    plain, moved = ((x.argmax(axis=1) == truth).mean() for x in (rows[1], corrected(np.log(rows[1]), weights)))
    assert moved > plain + 0.03


def test_balanced_weights_equal_resampling_to_equal_classes() -> None:
    labels = np.repeat([0, 1, 3], [6, 3, 1])
    weights = balancing(class_priors(labels, K))
    losses = np.random.default_rng(0).normal(size=len(labels))
    means = [losses[labels == k].mean() for k in (0, 1, 3)]
    assert (weights[labels] * losses).mean() == pytest.approx(np.mean(means))
    assert weights[labels].mean() == pytest.approx(1) and weights[2] == 0


def test_distances_are_0_for_equal_priors_symmetric_and_bounded() -> None:
    p, q = SKEWED, np.array([0.0, 0.0, 0.5, 0.5])
    slow = sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
    assert DISTANCES["total_variation"](p, q) == pytest.approx(slow)
    middle = (p + q) / 2
    kl = [sum(a * math.log(a / m) for a, m in zip(x, middle, strict=True) if a) for x in (p, q)]
    assert DISTANCES["jensen_shannon"](p, q) == pytest.approx(sum(kl) / 2)
    overlap = sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True))
    assert DISTANCES["hellinger"](p, q) == pytest.approx(math.sqrt(1 - overlap))
    assert distances(p, q)["largest_ratio"] == pytest.approx(10)
    for name in ("total_variation", "hellinger", "jensen_shannon"):
        assert DISTANCES[name](p, p) == pytest.approx(0, abs=1e-7)
        assert DISTANCES[name](p, q) == pytest.approx(DISTANCES[name](q, p))
    assert distances(np.array([1.0, 0.0]), np.array([0.0, 1.0]))["jensen_shannon"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("method", ["bbse", "mlls"])
def test_the_interval_holds_the_truth_and_narrows(method: str) -> None:
    widths = []
    for n in (200, 3200):
        (source, labels), (target, truth) = drawn(np.full(K, 0.25), n, 16), drawn(SKEWED, n, 17)
        rows = [posterior(x, np.full(K, 0.25)) for x in (source, target)]
        found = bootstrap(rows[0], labels, rows[1], method=method, seed=0, resamples=60)
        true = label_shift.total_variation(class_priors(labels, K), class_priors(truth, K))
        assert found[0] - 0.05 < true < found[1] + 0.05
        assert bootstrap(rows[0], labels, rows[1], method=method, seed=0, resamples=60) == found
        widths.append(found[1] - found[0])
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("method", ["bbse", "mlls"])
def test_of_a_classifier_that_is_always_right_the_interval_is_that_of_a_share(method: str) -> None:
    """320 of 400 images against a half: the distance is 0.3, and its standard error 0.02."""
    source, labels = np.repeat(np.eye(2), 50, axis=0), np.repeat([0, 1], 50)
    found = bootstrap(source, labels, np.repeat(np.eye(2), [320, 80], axis=0), method=method, seed=0, resamples=400)
    assert found == pytest.approx((0.3 - 1.96 * 0.02, 0.3 + 1.96 * 0.02), abs=0.006)


def test_source_images_are_drawn_within_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a class of one image is in every draw."""
    source, labels, draws = np.random.default_rng(0).random((6, 3)), np.array([2, 0, 1, 0, 0, 1]), list[list[int]]()

    def noted(predicted: Floats, known: Ints) -> Floats:
        draws.append([int((source == row).all(axis=1).argmax()) for row in predicted])
        assert known.tolist() == labels[draws[-1]].tolist() and sorted(known) == sorted(labels)
        return confusion_given_class(predicted, known)

    monkeypatch.setattr(label_shift, "confusion_given_class", noted)
    bootstrap(source, labels, np.eye(3), method="bbse", seed=0, resamples=20)
    assert len(draws) == 20 and len({tuple(rows) for rows in draws}) > 10


@pytest.mark.parametrize("method", ["bbse", "mlls"])
def test_whole_units_are_drawn(method: str) -> None:
    """Patients of five images: their interval is that of one image a patient. Each image a unit of its own: that without units."""
    (source, labels), (target, _) = drawn(np.full(K, 0.25), 200, 16), drawn(SKEWED, 200, 17)
    once = [posterior(x, np.full(K, 0.25)) for x in (source, target)]
    five, patients = [np.repeat(rows, 5, axis=0) for rows in once], np.repeat(np.arange(200), 5)
    given: dict[str, Any] = {"method": method, "seed": 0, "resamples": 200}
    alone = bootstrap(once[0], labels, once[1], **given)
    assert bootstrap(once[0], labels, once[1], **given, units=(np.arange(200), np.arange(200))) == alone
    whole = bootstrap(five[0], np.repeat(labels, 5), five[1], **given, units=(patients, patients))
    torn = bootstrap(five[0], np.repeat(labels, 5), five[1], **given)
    assert whole == pytest.approx(alone, abs=1e-6)
    assert torn[1] - torn[0] < 0.6 * (alone[1] - alone[0])


def test_a_unit_of_two_classes_is_drawn_within_each(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, units, draws = np.array([0, 0, 1, 1, 1]), np.array([7, 9, 7, 9, 9]), list[list[int]]()
    source = np.random.default_rng(0).random((5, 2))

    def noted(predicted: Floats, known: Ints) -> Floats:
        draws.append(sorted(int((source == row).all(axis=1).argmax()) for row in predicted))
        return confusion_given_class(predicted, known)

    monkeypatch.setattr(label_shift, "confusion_given_class", noted)
    bootstrap(source, labels, np.eye(2), method="bbse", seed=0, resamples=60, units=(units, np.arange(2)))
    of_0, of_1 = [[0, 0], [0, 1], [1, 1]], [[2, 2], [2, 3, 4], [3, 3, 4, 4]]
    assert {tuple(rows) for rows in draws} == {(*a, *b) for a in of_0 for b in of_1}


def test_the_interval_ends_at_quantiles_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter(np.random.default_rng(0).permutation(201).tolist())
    monkeypatch.setitem(DISTANCES, "total_variation", lambda p, q: next(values))
    labels = np.repeat([0, 1], 5)
    assert bootstrap(np.eye(2)[labels], labels, np.eye(2), method="bbse", seed=0, resamples=201) == (5.0, 195.0)


def test_few_images_of_the_source_leave_the_calibration_open_and_the_interval_says_so() -> None:
    """Drawn anew with its images, the calibration widens the interval where they are few, and hardly where they are many."""
    ratios, held = {}, 0
    for n in (40, 4000):
        widths = []
        for seed in range(4):
            (source, labels), (target, truth) = drawn(np.full(K, 0.25), n, 20 + seed), drawn(SKEWED, 400, 30 + seed)

            def calibrated(
                rows: Ints, source: Floats = source, labels: Ints = labels, target: Floats = target
            ) -> Floats:
                return np.exp(fit_bias_corrected(source[rows], labels[rows]).log_probabilities(target))

            given: dict[str, Any] = {"method": "mlls", "seed": 0, "resamples": 40}
            rows = calibrated(np.arange(n))
            known = bootstrap(rows, labels, rows, **given)
            low, high = bootstrap(rows, labels, rows, **given, calibrated=calibrated)
            widths.append((high - low, known[1] - known[0]))
            true = label_shift.total_variation(class_priors(labels, K), class_priors(truth, K))
            held += n == 40 and low - 0.05 < true < high + 0.05
        ratios[n] = float(np.divide(*np.sum(widths, axis=0)))
    assert ratios[40] > 1.5 > 1.3 > ratios[4000], ratios
    assert held >= 3
