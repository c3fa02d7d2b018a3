"""Few-shot classification on frozen features: the nearest class mean of a handful of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...core.draws import Draws
from ...core.errors import UserError
from ...core.evaluate.metrics import mean_interval
from .outcome import Outcome, Tests, empty_outcome, record_scores


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
    """Nearest class mean of `shots` images a class (SimpleShot, Wang et al. 2019, arXiv:1911.04623, CL2N).

    Features are centred by the mean of all training features, without labels, and normalised. Nothing is tuned, which a handful of
    labels would not allow. The interval is over the draws; details pool them, so supports are `draws` times the test set's.
    train_x: [N, D], train_y: int64 [N]; tests: name -> ([M, D], int64 [M]); classes: names, label i is classes[i].

    shots: Training images a class, 1 or more; each class needs as many.
    draws: Number of random choices of these images over which the score is averaged, 1 or more.
    """
    check_shots(train_y, classes, shots, draws)
    train_x, train_y = train_x.float().cpu(), train_y.cpu()
    centre = train_x.mean(dim=0)
    means = _class_means(normalize(train_x - centre, dim=1), train_y, classes, seed, shots, draws)
    outcome = empty_outcome("last")
    for test, (x, labels) in tests.items():
        near = torch.einsum("md,scd->smc", normalize(x.float().cpu() - centre, dim=1), normalize(means, dim=2))
        predictions = near.argmax(dim=2)
        record_scores(outcome, f"{test}/fewshot", labels.repeat(draws), predictions.flatten(), classes)
        outcome.predictions[f"{test}/fewshot"] = predictions
        accuracies = (predictions == labels.cpu()).double().mean(dim=1).tolist()
        outcome.details[f"{test}/fewshot"]["draws"] = accuracies
        outcome.intervals[f"{test}/fewshot/accuracy"] = list(mean_interval(accuracies)[1:])
    return outcome


def check_shots(labels: Tensor, classes: Sequence[str], shots: int, draws: int) -> None:
    """Raises UserError unless each class has `shots` training images. labels: int64 [N], label i is classes[i]."""
    if shots < 1 or draws < 1:
        raise UserError(f"evaluate.fewshot: expected shots and draws of 1 or more, got {shots} and {draws}")
    counts = torch.bincount(labels.cpu(), minlength=len(classes)).tolist()
    name, fewest = min(zip(classes, counts, strict=True), key=lambda pair: pair[1])
    if fewest < shots:
        raise UserError(
            f"evaluate.fewshot.shots: class {name} has {fewest} training images, fewer than shots = {shots}; "
            + (f"set it to {fewest} or less" if fewest else "leave this class out, or add images of it")
        )


def _class_means(x: Tensor, y: Tensor, classes: Sequence[str], seed: int, shots: int, draws: int) -> Tensor:
    """Mean of `shots` random images of each class, float [draws, K, D]."""
    members = [(y == label).nonzero()[:, 0] for label in range(len(classes))]
    order = Draws(seed, torch.arange(len(y))).bits("fewshot", draws)
    chosen = [[rows[order[rows, i].argsort(stable=True)[:shots]] for rows in members] for i in range(draws)]
    return torch.stack([torch.stack([x[rows].mean(dim=0) for rows in picked]) for picked in chosen])
