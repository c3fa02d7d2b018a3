"""The scores of a classifier on labelled test sets, in the form of result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..images.open import Images
from ..views.view import Evaluation
from .features import extract
from .metrics import classification, cluster_bootstrap


class Scores(NamedTuple):
    """metrics: "TEST/PROTOCOL/METRIC" -> fraction. intervals: 95 % intervals by bootstrap. details: per class, and confusion."""

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    details: dict[str, Any]


def score(
    classifier: nn.Module,
    tests: Mapping[str, Images],
    view: Evaluation,
    classes: Sequence[str],
    device: torch.device,
    seed: int,
    workers: int = 0,
) -> Scores:
    """Test a classifier on labelled sets (labels as indices into `classes`), each image once."""
    scores = Scores({}, {}, {})
    for name, images in tests.items():
        assert images.labels is not None
        predictions = extract(classifier, images, view, device=device, workers=workers).argmax(1)
        add_scores(scores, f"{name}/classifier", images, predictions, classes, seed)
    return scores


def add_scores(
    scores: Scores, key: str, images: Images, predictions: Tensor, classes: Sequence[str], seed: int
) -> None:
    """Add one test's numbers under key = "TEST/PROTOCOL". The bootstrap draws copies and blends of one picture together."""
    assert images.labels is not None
    found = classification(images.labels, predictions, classes)
    scores.details[key] = {**found, "classes": list(classes)}
    scores.metrics.update({f"{key}/{metric}": found[metric] for metric in ("accuracy", "precision", "recall", "f1")})
    correct = predictions == images.labels
    low, high = cluster_bootstrap(correct, images.keys(), seed=seed)
    if low is not None and high is not None:
        scores.intervals[f"{key}/accuracy"] = [low, high]
