"""Effects on each test image: their intervals over seeds and images, against the paired contrast of two cells."""

from collections.abc import Mapping

import numpy as np
import pytest

from rootstock.core.evaluate.factorial import attributed, effect_weights
from rootstock.core.evaluate.nested import ImageScores, nested, paired_scores
from rootstock.core.evaluate.predictions import ScoredImages
from rootstock.launch.attribute.images import effect_over_images, images_of
from rootstock.launch.report.answers import Answers

STAGES, SEEDS, M = ("off", "on"), (0, 1, 2), 40
METRIC, SPAN = "target/classifier/accuracy", (-1.0, 1.0)


def answers(stage: str, seed: int, *, moved: bool = False) -> Mapping[str, Answers]:
    """`on` is right where `off` is, and on more images; the rows of each stage lie in an order of their own."""
    draws = np.random.default_rng(seed)
    hard = draws.random(M)
    correct = (hard < (0.5 if stage == "off" else 0.7)).astype(np.float64)
    keys = np.arange(M, dtype=np.int64) + 1000 * moved
    order = np.random.default_rng(len(stage)).permutation(M)
    images = ScoredImages(keys[order], np.zeros(M, dtype=np.int64), ("a", "b"), None, (), None)
    return {"target/classifier": Answers(images, "logits", correct[order], None, None, None)}


def test_the_interval_is_that_of_the_paired_contrast() -> None:
    images = images_of(STAGES, METRIC, SEEDS, answers)
    assert images is not None and [one.correct.shape for one in images] == [(2, M)] * 3
    weights = effect_weights(1, 1)
    responses = np.array([[one.correct[cell].mean() for one in images] for cell in range(2)])
    found, p = effect_over_images(attributed(weights, responses, None, SPAN), weights, images, SPAN)
    pairs = [[paired_scores(*(ImageScores(one.correct[cell], one.drawn) for cell in (1, 0)))] for one in images]
    expected = nested(pairs, seed=0).interval(seed=0, span=SPAN)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(expected.estimate) and p is not None and 0.0 <= p < 0.05
    alone = attributed(weights, responses, None, SPAN)
    assert alone.low is not None and found.low is not None and found.low < alone.low  # images vary too


def test_one_seed_has_an_interval_over_its_images() -> None:
    images = images_of(STAGES, METRIC, (0,), answers)
    assert images is not None
    weights = effect_weights(1, 1)
    responses = np.array([[one.correct[cell].mean() for one in images] for cell in range(2)])
    alone = attributed(weights, responses, None, SPAN)
    found, _ = effect_over_images(alone, weights, images, SPAN)
    assert (
        alone.low is None and found.low is not None and found.high is not None and found.low < found.mean < found.high
    )


def test_without_predictions_of_the_same_images_it_is_over_seeds() -> None:
    assert images_of(STAGES, "target/classifier/ece", SEEDS, answers) is None
    assert images_of(STAGES, METRIC, SEEDS, lambda stage, seed: {}) is None
    assert images_of(STAGES, METRIC, SEEDS, lambda stage, seed: answers(stage, seed, moved=stage == "on")) is None
    found = attributed(effect_weights(1, 1), np.array([[0.5, 0.6], [0.7, 0.9]]))
    assert effect_over_images(found, effect_weights(1, 1), None, SPAN) == (found, None)
