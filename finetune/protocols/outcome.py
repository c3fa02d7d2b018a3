"""What a protocol returns, and how it records the scores of a test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...core.evaluate.metrics import classification

SCORES = ("accuracy", "precision", "recall", "f1")
Tests = Mapping[str, tuple[Tensor, Tensor]]  # name -> (features [M, D] or tokens [M, L, D], labels int64 [M])


class Outcome(NamedTuple):
    """The result of a protocol. Keys start with "TEST/PROTOCOL", e.g. "target/knn"."""

    metrics: dict[str, float]  # "TEST/PROTOCOL/METRIC": a fraction in 0..1; accuracy first
    details: dict[str, dict[str, Any]]  # "TEST/PROTOCOL": what `classification` returns
    predictions: dict[str, Tensor]  # "TEST/PROTOCOL": int64 [M], or [draws, M] for few-shot
    intervals: dict[str, list[float | None]]  # "TEST/PROTOCOL/METRIC": [low, high], where the protocol itself repeats
    chosen: dict[str, float]  # "PROTOCOL/k", "PROTOCOL/C", "PROTOCOL/lr": values chosen on a held-out training slice
    fits: dict[
        str, Any
    ]  # "PROTOCOL": iterations and convergence of the solver, for each C of the "choice" and for the "refit"
    selection: str  # "train-split" if something was chosen, else "last"


def empty_outcome(selection: str) -> Outcome:
    """An outcome without scores. selection: "train-split" or "last"."""
    return Outcome({}, {}, {}, {}, {}, {}, selection)


def record_scores(outcome: Outcome, key: str, labels: Tensor, predictions: Tensor, classes: Sequence[str]) -> None:
    """Score one test set under `key`, "TEST/PROTOCOL"."""
    scores = classification(labels, predictions, classes)
    outcome.metrics.update({f"{key}/{name}": scores[name] for name in SCORES})
    outcome.details[key] = scores
    outcome.predictions[key] = predictions
