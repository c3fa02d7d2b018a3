"""All numbers of one protocol: which are there for which scores, and that they are the definitions' own."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss, roc_auc_score

from rootstock.core.errors import UserError
from rootstock.core.evaluate.definitions import DEFINITIONS, definition_of, range_of
from rootstock.core.evaluate.intervals import mean_interval
from rootstock.core.evaluate.measures import OPEN_SET, HeldOut, measure
from rootstock.core.evaluate.metrics import classification, cluster_bootstrap
from rootstock.core.evaluate.predictions import ScoredImages, to_half

# Of protocols without scores.
COMPARISONS = ("map", "map@r", "recall@k", "precision@k", "eer", "frr@far", "pair_auroc")
BY_CLASS_SIZE = ("accuracy_many", "accuracy_medium", "accuracy_few")  # of data.class_groups
PROBABILISTIC = {"nll", "brier", "ece", "ece_equal_mass", "ece_floor"}


def images(n: int = 60, k: int = 6, seed: int = 0, **more: Any) -> ScoredImages:
    labels = np.random.default_rng(seed).integers(0, k, n)
    return ScoredImages(np.arange(n), labels, tuple("abcdefghij"[:k]), **more)


def logits(rows: ScoredImages, seed: int = 1, scale: float = 2.0) -> Any:
    noise = np.random.default_rng(seed).normal(size=(len(rows.keys), len(rows.classes)))
    return scale * (noise + 1.5 * (rows.labels[:, None] == np.arange(len(rows.classes))))


def test_every_metric_is_defined_and_in_its_range() -> None:
    rows = images(groups=np.arange(60) % 2, group_names=("city", "sea"))
    held_out = HeldOut(logits(images(40, seed=5), 6), images(40, seed=5).labels)
    found = measure(rows, to_half(logits(rows), "logits"), seed=0, held_out=held_out)
    assert set(found.metrics) == DEFINITIONS.keys() - {
        "bce",
        "average_precision_micro",
        "miou",
        "pixel_accuracy",
        "ms_an_image",  # of evaluate.speed
        *("memorised", "recovered"),  # of data.label_noise
        *COMPARISONS,
        *OPEN_SET,
        *BY_CLASS_SIZE,
    }
    for name, value in found.metrics.items():
        low, high = range_of(f"test/x/{name}")
        assert low <= value <= high, name
    assert set(found.intervals) <= set(found.metrics)
    for name, (low, high) in found.intervals.items():
        assert range_of(name)[0] <= low <= found.metrics[name] <= high <= range_of(name)[1], name
    assert definition_of("test/x/guess") is None and range_of("guess") == (-np.inf, np.inf)


def test_a_name_with_a_number_has_the_definition_of_its_kind() -> None:
    for name, key in (("recall@5", "recall@k"), ("precision@10", "precision@k"), ("frr@0.001", "frr@far")):
        assert definition_of(f"test/retrieval@cls/{name}") is DEFINITIONS[key]
    assert definition_of("test/verification/frr@1e-05") is DEFINITIONS["frr@far"]
    assert range_of("test/verification/frr@1e-05") == (0.0, 1.0)
    for name in ("recall@", "recall@ten", "accuracy@5", "map@5", "@5", "recall@-"):
        assert definition_of(f"test/x/{name}") is None, name


def test_numbers_are_those_of_the_kept_scores() -> None:
    rows = images()
    saved = to_half(logits(rows), "logits")
    found = measure(rows, saved, seed=3)
    p, labels = softmax(saved.scores.astype(float), axis=1), rows.labels
    assert found.metrics["nll"] == pytest.approx(log_loss(labels, p, labels=range(6)), abs=1e-12)
    assert found.metrics["auroc"] == pytest.approx(roc_auc_score(labels, p, multi_class="ovr"), abs=1e-12)
    plain = classification(torch.from_numpy(labels), torch.from_numpy(saved.scores.argmax(1)), rows.classes)
    assert [found.metrics[m] for m in ("accuracy", "precision", "recall", "f1")] == [
        plain[m] for m in ("accuracy", "precision", "recall", "f1")
    ]
    assert plain.items() <= found.details.items()


def test_the_interval_of_accuracy_of_many_images_stays_the_percentiles() -> None:
    rows = images(300)
    saved = to_half(logits(rows), "logits")
    correct = torch.from_numpy(saved.scores.argmax(1) == rows.labels)
    expected = cluster_bootstrap(correct, torch.arange(300), seed=3)
    assert measure(rows, saved, seed=3).intervals["accuracy"] == list(expected)


@pytest.mark.parametrize("offset", [5000.0, 70_000.0])
def test_no_number_depends_on_what_the_logits_of_an_image_have_in_common(offset: float) -> None:
    rows = images(300)
    plain, moved = (measure(rows, to_half(logits(rows) + add, "logits"), seed=3) for add in (0.0, offset))
    assert moved.metrics == pytest.approx(plain.metrics, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("kind", ["votes", "similarities"])
def test_what_is_no_probability_has_no_calibration(kind: str) -> None:
    rows = images()
    found = measure(rows, to_half(np.abs(logits(rows)), kind), seed=0)
    assert not PROBABILISTIC & found.metrics.keys() and {"top5", "auroc", "average_precision"} <= found.metrics.keys()
    assert ("aurc" in found.metrics) == (kind == "votes")


@pytest.mark.parametrize(("k", "there"), [(5, False), (6, True)])
def test_top5_only_where_it_says_something(k: int, there: bool) -> None:
    rows = images(k=k)
    assert ("top5" in measure(rows, to_half(logits(rows), "logits"), seed=0).metrics) == there


@pytest.mark.parametrize("right", [True, False])
def test_one_image(right: bool) -> None:
    rows = ScoredImages(np.array([7]), np.array([1]), ("a", "b"))
    found = measure(rows, to_half(np.array([[0.0, 2.0 if right else -2.0]]), "logits"), seed=0)
    assert found.metrics["accuracy"] == float(right) and found.intervals == {}
    assert "auroc" not in found.metrics and found.metrics["average_precision"] == 1.0
    assert ("kappa" in found.metrics) == (not right)  # chance alone agrees wholly if all is class b


def test_few_errors_have_an_interval() -> None:
    rows = images(40)
    found = measure(rows, to_half(9.0 * (rows.labels[:, None] == np.arange(6)), "logits"), seed=0)
    low, high = found.intervals["accuracy"]
    assert found.metrics["accuracy"] == high == 1.0 and 0.9 < low < 1.0
    assert found.details["interval"] == "wilson" and "f1" not in found.intervals


def test_no_images() -> None:
    with pytest.raises(UserError, match="no labelled images"):
        measure(images(0), to_half(np.zeros((0, 6)), "logits"), seed=0)


def test_draws_are_pooled_and_ranked_one_by_one() -> None:
    rows = images(30)
    scores = np.stack([logits(rows, seed) + 10 * seed for seed in range(3)])
    saved = to_half(scores, "similarities")
    found, alone = (
        measure(rows, saved, seed=0),
        [measure(rows, to_half(s, "similarities"), seed=0) for s in saved.scores],
    )
    for name in ("accuracy", "top5", "auroc", "average_precision"):
        assert found.metrics[name] == pytest.approx(np.mean([one.metrics[name] for one in alone]), abs=1e-12)
    accuracies = [one.metrics["accuracy"] for one in alone]
    assert found.details["draws"] == accuracies
    assert found.details["intervals"]["draws"] == list(mean_interval(accuracies, span=(0, 1))[1:])
    low, high = found.intervals["accuracy"]
    assert [low, high] == found.details["intervals"]["draws and images"]
    images_low, images_high = found.details["intervals"]["images"]
    assert low < images_low < images_high < high
    assert sum(map(sum, found.details["confusion"])) == 90


def test_the_interval_of_many_draws_is_still_that_of_few_images() -> None:
    """Draws that are all equal, or many, say nothing of other test images."""
    rows = images(45)
    one = logits(rows)
    alone = measure(rows, to_half(one, "similarities"), seed=0).intervals["accuracy"]
    equal = measure(rows, to_half(np.stack([one] * 3), "similarities"), seed=0)
    assert equal.intervals["accuracy"] == pytest.approx(alone, abs=0.03) and alone[1] - alone[0] > 0.1
    draw = np.random.default_rng(0).normal(size=(300, *one.shape)) / 2
    many = measure(rows, to_half(one + draw, "similarities"), seed=0)
    widths = {name: high - low for name, (low, high) in many.details["intervals"].items()}
    assert widths["draws"] < 0.02 and widths["draws and images"] >= 0.95 * widths["images"] > 0.1


def test_draws_without_errors_have_the_interval_of_few_errors() -> None:
    rows = images(40)
    right = 9.0 * (rows.labels[:, None] == np.arange(6))
    one, three = (measure(rows, to_half(s, "similarities"), seed=0) for s in (right, np.stack([right] * 3)))
    assert three.intervals["accuracy"] == one.intervals["accuracy"] and one.intervals["accuracy"][0] < 1.0


def test_temperature_changes_no_prediction() -> None:
    rows, train = images(200), images(200, seed=5)
    held_out = HeldOut(logits(train, 6, 20.0), train.labels)
    saved = to_half(logits(rows, 7, 20.0), "logits")
    found, before = measure(rows, saved, seed=0, held_out=held_out), measure(rows, saved, seed=0)
    assert before.metrics.items() <= found.metrics.items()
    assert found.metrics["ece_scaled"] < found.metrics["ece"] and found.metrics["nll_scaled"] < found.metrics["nll"]
    assert found.details["temperature"]["value"] > 3
    assert found.details["temperature"]["fitted_on"] == "200 held-out training images"
    assert "left_out" not in found.details


@pytest.mark.parametrize(("sign", "right"), [(1.0, "100%"), (-1.0, "0%"), (0.0, "17%")])
def test_a_temperature_at_the_bound_of_its_range_is_no_result(sign: float, right: str) -> None:
    """All held-out images right, all wrong, or all logits equal: the best T lies beyond the range, or nowhere."""
    rows, labels = images(200), np.arange(60) % 6
    held_out = HeldOut(sign * 5.0 * (labels[:, None] == np.arange(6)), labels)
    found = measure(rows, to_half(logits(rows), "logits"), seed=0, held_out=held_out)
    assert not {"nll_scaled", "ece_scaled"} & (found.metrics.keys() | found.intervals.keys())
    assert {"nll", "ece"} <= found.metrics.keys()
    reason = (
        f"no temperature from 0.001 to 1000 is the best one on 60 held-out training images, of which {right} are right"
    )
    assert found.details["left_out"] == {"nll_scaled": reason, "ece_scaled": reason}
    assert found.details["temperature"]["value"] is None and found.details["temperature"]["at_bound"]


@pytest.mark.parametrize("draws", [1, 3])
def test_a_class_that_the_classifier_does_not_know_has_no_likelihood(draws: int) -> None:
    """NLL of these images is infinite, which float16 hides; they are wrong for accuracy, Brier score and ECE, which are bounded."""
    rows, train = images(200), images(200, seed=5)
    known = np.stack([np.where(np.arange(6) == 5, -np.inf, logits(rows, draw)) for draw in range(draws)])
    of_train = np.where(np.arange(6) == 5, -np.inf, logits(train, 9, 20.0))
    held_out = HeldOut(of_train[train.labels != 5], train.labels[train.labels != 5])
    saved = to_half(known[0] if draws == 1 else known, "logits")
    found = measure(rows, saved, seed=0, held_out=held_out)
    unknown = int((rows.labels == 5).sum())
    reason = f"the classifier gives the true class of {unknown} of the images no probability"
    assert found.details["left_out"] == {"nll": reason, "nll_scaled": reason}
    assert not {"nll", "nll_scaled"} & (found.metrics.keys() | found.intervals.keys())
    assert {"brier", "ece", "ece_scaled"} <= found.metrics.keys() and found.metrics["accuracy"] <= 1 - unknown / 200
    p = softmax(known, axis=-1).reshape(-1, 6)
    expected = np.square(p - np.eye(6)[np.tile(rows.labels, draws)]).sum(1).mean()
    assert found.metrics["brier"] == pytest.approx(expected, abs=2e-3)
    # The same scores of images of known classes alone have all.
    some = np.flatnonzero(rows.labels != 5)
    fewer = ScoredImages(rows.keys[some], rows.labels[some], rows.classes)
    kept = to_half(known[0][some] if draws == 1 else known[:, some], "logits")
    assert {"nll", "nll_scaled"} <= measure(fewer, kept, seed=0, held_out=held_out).metrics.keys()


def test_groups() -> None:
    rows = images(groups=np.r_[np.zeros(50, int), np.ones(10, int)], group_names=("city", "sea", "empty"))
    saved = to_half(logits(rows), "logits")
    found, right = measure(rows, saved, seed=0), saved.scores.argmax(1) == rows.labels
    each = [right[:50].mean(), right[50:].mean()]
    assert (found.metrics["worst_group"], found.metrics["mean_group"]) == pytest.approx((min(each), np.mean(each)))
    assert found.details["groups"]["small"] == ["sea"]
    single = images(groups=np.zeros(60, int), group_names=("city", "sea"))
    assert "worst_group" not in measure(single, saved, seed=0).metrics


def test_several_labels_an_image() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((30, 3)) < 0.4).astype(np.uint8)
    rows = ScoredImages(np.arange(30), labels, ("a", "b", "c"))
    saved = to_half(random.normal(size=(30, 3)) + labels, "logits", several=True)
    ranked = {"average_precision", "average_precision_micro", "bce"}
    assert set(measure(rows, saved, seed=0).metrics) == ranked
    found = measure(rows, saved, seed=0, held_out=HeldOut(random.normal(size=(30, 3)) + labels, labels))
    assert set(found.metrics) == ranked | {"f1_micro", "f1_macro"} == set(found.intervals)
    assert next(iter(found.metrics)) == "average_precision"  # which a report shows first
    assert len(found.details["thresholds"]) == 3
    assert all(low < found.metrics[name] < high for name, (low, high) in found.intervals.items())


def test_classes_without_images_have_no_part_in_the_mean_and_are_named() -> None:
    labels = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], np.uint8)
    rows = ScoredImages(np.arange(4), labels, ("a", "b", "c"))
    found = measure(rows, to_half(labels - 0.5, "logits", several=True), seed=0)
    assert found.metrics["average_precision"] == 1.0 and found.details["classes_without_images"] == ["b"]
    assert found.details["images_without_classes"] == 1 and found.details["per_class"]["b"]["average_precision"] is None


def test_copies_widen_no_interval_of_several_classes() -> None:
    """Ten copies of each image, of one identity: the intervals are those of the images."""
    random = np.random.default_rng(1)
    labels = (random.random((40, 3)) < 0.4).astype(np.uint8)
    scores = random.normal(size=(40, 3)) + labels
    one, ten = (
        measure(
            ScoredImages(np.tile(np.arange(40), n), np.tile(labels, (n, 1)), ("a", "b", "c")),
            to_half(np.tile(scores, (n, 1)), "logits", several=True),
            seed=0,
            held_out=HeldOut(scores, labels),
        )
        for n in (1, 10)
    )
    assert ten.metrics == pytest.approx(one.metrics, abs=1e-12)
    for name, pair in one.intervals.items():
        assert ten.intervals[name] == pytest.approx(pair, abs=1e-9)


def test_thresholds_are_rounded_as_the_scores_are() -> None:
    """A test image with the very scores of a training image is on the same side, beyond the largest float16 too."""
    labels = np.array([[1], [0]], np.uint8)
    rows = ScoredImages(np.arange(2), labels, ("a",))
    for high in (1.00001, 70000.0):
        scores = np.array([[high], [0.0]])
        found = measure(rows, to_half(scores, "logits", several=True), seed=0, held_out=HeldOut(scores, labels))
        assert found.metrics["f1_micro"] == found.metrics["f1_macro"] == 1.0


def test_an_open_set_has_its_metrics_first_from_loops() -> None:
    rows = images(80, 5, seed=3, open_set=True)
    saved = to_half(logits(rows, scale=1.0), "logits")
    found, right = measure(rows, saved, seed=0), saved.scores.argmax(1) == rows.labels
    each = [np.mean([bool(r) for r, y in zip(right, rows.labels, strict=True) if y == k]) for k in range(5)]
    known, unknown = sum(each[:4]) / 4, each[4]
    expected = {
        "hos": 2 / (1 / known + 1 / unknown),
        "os_star": known,
        "unknown_accuracy": unknown,
        "os": sum(each) / 5,
    }
    assert list(found.metrics)[:4] == list(OPEN_SET) == list(expected)
    for name, value in expected.items():
        assert found.metrics[name] == pytest.approx(value), name
        low, high = found.intervals[name]
        assert 0.0 <= low < value < high <= 1.0
        assert definition_of(f"target/classifier/{name}") is not None
    plain = measure(images(80, 5, seed=3), saved, seed=0).metrics
    assert {name: value for name, value in found.metrics.items() if name not in OPEN_SET} == plain


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        ([0, 1, 1], [0, 1, 0], {"os_star": 0.75}),  # no unknown image: a source test
        ([2, 2], [2, 0], {"unknown_accuracy": 0.5}),  # unknown images alone
        ([0, 0, 2], [2, 2, 2], {"hos": 0.0, "os_star": 0.0, "unknown_accuracy": 1.0, "os": 0.5}),  # class 1 absent
        ([0, 2], [2, 0], {"hos": 0.0, "os_star": 0.0, "unknown_accuracy": 0.0, "os": 0.0}),
    ],
)
def test_an_open_set_metric_without_its_images_is_left_out(
    labels: list[int], predictions: list[int], expected: dict[str, float]
) -> None:
    rows = ScoredImages(np.arange(len(labels)), np.array(labels), ("a", "b", "unknown"), open_set=True)
    found = measure(rows, to_half(9.0 * (np.array(predictions)[:, None] == np.arange(3)), "logits"), seed=0).metrics
    assert {name: found[name] for name in OPEN_SET if name in found} == expected
