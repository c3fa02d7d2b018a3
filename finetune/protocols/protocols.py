"""Evaluation protocols on frozen features: kNN, linear and attentive probes, few-shot, and published presets by name.

A protocol is a function of feature tensors, so features are extracted once and all protocols share them; those of READ_TOKENS
take tokens, which are extracted only for them. A protocol's keyword-only parameters are its section of a config. Where it has
something to choose (k, C, a rate) it chooses on a held-out slice of the *training* features and says so; test labels are only
ever compared with predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...core.draws import Draws
from ...core.errors import UserError
from ...core.evaluate.knn import knn_predict, neighbours, vote
from ...core.evaluate.metrics import classification, mean_interval
from .attentive import AttentiveTraining, fit_choosing
from .logreg import C_GRID, fit_choosing_C, stratified_slice

# `linear` tries these C by default: one a decade.
COARSE_GRID: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3)
SCORES = ("accuracy", "precision", "recall", "f1")
Tests = Mapping[str, tuple[Tensor, Tensor]]


class Outcome(NamedTuple):
    """What a protocol found. Keys start with "TEST/PROTOCOL", e.g. "target/knn"."""

    metrics: dict[str, float]  # "TEST/PROTOCOL/METRIC": a fraction in 0..1; accuracy first
    details: dict[str, dict[str, Any]]  # "TEST/PROTOCOL": what `classification` returns
    predictions: dict[str, Tensor]  # "TEST/PROTOCOL": int64 [M], or [draws, M] for few-shot
    intervals: dict[str, list[float | None]]  # "TEST/PROTOCOL/METRIC": [low, high], where the protocol itself repeats
    chosen: dict[
        str, float
    ]  # "PROTOCOL/k", "PROTOCOL/C", "PROTOCOL/lr": what the held-out slice chose, where there was a choice
    selection: str  # "train-split" if something was chosen, else "last"


def knn(
    train_x: Tensor,
    train_y: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    *,
    k: int | list[int] = 20,
    temperature: float | None = 0.07,
) -> Outcome:
    """Weighted cosine kNN; of several k the best on the held-out slice is taken (see `core.knn.knn_predict`).

    train_x: [N, D], train_y: int64 [N]; tests: name -> ([M, D], int64 [M]); classes: names, label i is classes[i].
    """
    return _knn("knn", train_x, train_y, tests, classes, seed, k, temperature)


def knn_lightly(train_x: Tensor, train_y: Tensor, tests: Tests, classes: Sequence[str], seed: int) -> Outcome:
    """lightly's benchmark kNN: k = 200, T = 0.1. Its tables take the maximum over epochs; this is one model's."""
    return _knn("knn-lightly", train_x, train_y, tests, classes, seed, 200, 0.1)


def knn_dino(train_x: Tensor, train_y: Tensor, tests: Tests, classes: Sequence[str], seed: int) -> Outcome:
    """DINO's kNN (Caron et al. 2021, arXiv:2104.14294): T = 0.07, k of 10, 20, 100, 200 by the held-out slice."""
    return _knn("knn-dino", train_x, train_y, tests, classes, seed, [10, 20, 100, 200], 0.07)


def linear(
    train_x: Tensor,
    train_y: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    *,
    C: list[float] | None = None,
) -> Outcome:
    """Logistic regression, C chosen on the held-out slice; C: the values to try, by default 1e-4, 1e-3 ... 1e3."""
    return _linear("linear", train_x, train_y, tests, classes, seed, COARSE_GRID if C is None else C)


def logreg(train_x: Tensor, train_y: Tensor, tests: Tests, classes: Sequence[str], seed: int) -> Outcome:
    """DINOv2's logistic regression (Oquab et al. 2023, arXiv:2304.07193): 45 values of C, 1e-6 to 1e5."""
    return _linear("logreg", train_x, train_y, tests, classes, seed, C_GRID)


def attentive(
    train_x: Tensor,
    train_y: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Outcome:
    """A small attention over tokens and a linear classifier; its section of a config is `Training` (see finetune/protocols/attentive.py).

    train_x: [N, L, D] on the CPU and tests the same; device: where the probe is trained.
    """
    training = AttentiveTraining(**options)
    model = fit_choosing(train_x, train_y, len(classes), training, seed, device)
    outcome = _empty("train-split" if model.selected else "last")
    if model.selected:
        rate, decay = model.grid[0]
        outcome.chosen.update({"attentive/lr": rate, "attentive/weight_decay": decay})
    for test, (x, labels) in tests.items():
        _record(outcome, f"{test}/attentive", labels, model.predict(x), classes)
    return outcome


def fewshot(
    train_x: Tensor,
    train_y: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    *,
    shots: int = 5,
    draws: int = 10,
) -> Outcome:
    """Nearest class mean from `shots` images a class (SimpleShot, Wang et al. 2019, arXiv:1911.04623, CL2N).

    Features are centred by the mean of all (unlabelled) training features and normalised; there is nothing to tune,
    which a handful of labels could not do honestly. Repeated over `draws` random choices of the images; the interval is
    over them and the details pool them, so supports are `draws` times the test set's.
    """
    if shots < 1 or draws < 1:
        raise UserError(f"fewshot needs shots and draws of at least 1, got {shots} and {draws}")
    train_x, train_y = train_x.float().cpu(), train_y.cpu()
    members = [(train_y == label).nonzero()[:, 0] for label in range(len(classes))]
    for name, rows in zip(classes, members, strict=True):
        if len(rows) < shots:
            raise UserError(f"fewshot: class {name} has {len(rows)} training images, fewer than shots = {shots}")
    centre = train_x.mean(dim=0)
    train_x = normalize(train_x - centre, dim=1)
    order = Draws(seed, torch.arange(len(train_y))).bits("fewshot", draws)
    chosen = [[rows[order[rows, i].argsort(stable=True)[:shots]] for rows in members] for i in range(draws)]
    means = torch.stack([torch.stack([train_x[rows].mean(dim=0) for rows in picked]) for picked in chosen])
    outcome = _empty("last")
    for test, (x, labels) in tests.items():
        near = torch.einsum("md,scd->smc", normalize(x.float().cpu() - centre, dim=1), normalize(means, dim=2))
        predictions = near.argmax(dim=2)
        _record(outcome, f"{test}/fewshot", labels.repeat(draws), predictions.flatten(), classes)
        outcome.predictions[f"{test}/fewshot"] = predictions
        accuracies = (predictions == labels.cpu()).double().mean(dim=1).tolist()
        outcome.details[f"{test}/fewshot"]["draws"] = accuracies
        outcome.intervals[f"{test}/fewshot/accuracy"] = list(mean_interval(accuracies)[1:])
    return outcome


def _knn(
    protocol: str,
    train_x: Tensor,
    train_y: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    k: int | Sequence[int],
    temperature: float | None,
) -> Outcome:
    several = [k] if isinstance(k, int) else sorted(set(k))
    if not several:
        raise UserError(f"{protocol} needs at least one k, got an empty list")
    best, selection = several[0], "last"
    if len(several) > 1:
        best, selection = _best_k(train_x, train_y, len(classes), seed, several, temperature), "train-split"
    outcome = _empty(selection)
    if selection == "train-split":
        outcome.chosen[f"{protocol}/k"] = best
    predict = partial(knn_predict, train_x, train_y, num_classes=len(classes), k=best, temperature=temperature)
    for test, (x, labels) in tests.items():
        _record(outcome, f"{test}/{protocol}", labels, predict(test_x=x), classes)
    return outcome


def _best_k(
    train_x: Tensor, train_y: Tensor, num_classes: int, seed: int, several: Sequence[int], temperature: float | None
) -> int:
    """The k with most of the held-out training slice right, of equals the smallest; one search serves them all."""
    held_out = stratified_slice(train_y, fraction=0.2, seed=seed)
    if not bool(held_out.any()):
        raise UserError(f"kNN: no class has two training images to choose k of {list(several)} on; give a single k")
    x, y = train_x.cpu(), train_y.cpu().long()
    similarity, rows = neighbours(x[~held_out], x[held_out], several[-1])
    near = y[~held_out][rows]
    right = [
        int((vote(similarity[:, :k], near[:, :k], num_classes, temperature) == y[held_out]).sum()) for k in several
    ]
    return several[right.index(max(right))]


def _linear(
    protocol: str,
    train_x: Tensor,
    train_y: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    grid: Sequence[float],
) -> Outcome:
    model = fit_choosing_C(train_x, train_y, len(classes), seed=seed, values_of_C=grid)
    outcome = _empty("train-split" if model.selected else "last")
    if model.selected:
        outcome.chosen[f"{protocol}/C"] = model.C
    for test, (x, labels) in tests.items():
        _record(outcome, f"{test}/{protocol}", labels, model.predict(x), classes)
    return outcome


def _empty(selection: str) -> Outcome:
    return Outcome({}, {}, {}, {}, {}, selection)


def _record(outcome: Outcome, key: str, labels: Tensor, predictions: Tensor, classes: Sequence[str]) -> None:
    """Score one test set under "TEST/PROTOCOL"."""
    scores = classification(labels, predictions, classes)
    outcome.metrics.update({f"{key}/{name}": scores[name] for name in SCORES})
    outcome.details[key] = scores
    outcome.predictions[key] = predictions


PROTOCOLS: Mapping[str, Callable[..., Outcome]] = {
    "knn": knn,
    "knn-lightly": knn_lightly,
    "knn-dino": knn_dino,
    "linear": linear,
    "logreg": logreg,
    "attentive": attentive,
    "fewshot": fewshot,
}
READ_TOKENS = frozenset({"attentive"})
