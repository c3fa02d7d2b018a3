"""What the result of a probe says about each protocol: the scores of each test, what was chosen, and how solvers ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...core.evaluate.held_out import describe_slice
from ...core.evaluate.intervals import mean_interval
from ...core.evaluate.metrics import classification
from ...core.evaluate.scores import Scores, add_scores
from ...core.images.images import Images
from .contract import Features, Fitted


def add_outcome(
    scores: Scores,
    name: str,
    fitted: Fitted,
    tests: Mapping[str, Images],
    shown: Mapping[str, Features],
    classes: Sequence[str],
    seed: int,
) -> None:
    """Score every labelled test by a fitted protocol. name: the protocol's; shown: the features of each test, by tap."""
    for test, images in tests.items():
        if images.labels is None:
            continue
        predictions, key = fitted.scores(shown[test]).argmax(-1).cpu(), f"{test}/{name}"
        if predictions.ndim == 1:
            add_scores(scores, key, images, predictions, classes, seed)
        else:
            _add_draws(scores, key, images.labels, predictions, classes)
        scores.details[key] |= fitted.facts


def _add_draws(scores: Scores, key: str, labels: Tensor, predictions: Tensor, classes: Sequence[str]) -> None:
    """Add the scores of a protocol that repeats. predictions: int64 [draws, M]. Details pool the draws; the interval is over them."""
    found = classification(labels.repeat(len(predictions)), predictions.flatten(), classes)
    accuracies = (predictions == labels).double().mean(1).tolist()
    scores.details[key] = {**found, "draws": accuracies}
    scores.metrics.update({f"{key}/{metric}": found[metric] for metric in ("accuracy", "precision", "recall", "f1")})
    scores.intervals[f"{key}/accuracy"] = [v for v in mean_interval(accuracies)[1:] if v is not None]


def what_was_chosen(outcomes: Mapping[str, Fitted], train: Images, seed: int) -> dict[str, Any]:
    """What the protocols chose, how the slice of the training images was drawn on which they did, and how solvers ended."""
    chosen = {f"{name}/{key}": value for name, one in outcomes.items() for key, value in one.chosen.items()}
    fits = {name: dict(one.fit) for name, one in outcomes.items() if one.fit}
    tried = {name: list(map(dict, one.candidates)) for name, one in outcomes.items() if one.candidates}
    drawn = {"held_out": describe_slice(train, seed)} if chosen else {}
    return {
        "chosen": chosen, **drawn, **({"candidates": tried} if tried else {}), **({"fits": fits} if fits else {})
    }  # fmt: skip
