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
    if shots < 1 or draws < 1:
        raise UserError(f"fewshot needs shots and draws of at least 1, got {shots} and {draws}")
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


def _class_means(x: Tensor, y: Tensor, classes: Sequence[str], seed: int, shots: int, draws: int) -> Tensor:
    """Mean of `shots` random images of each class, float [draws, K, D]. Raises UserError for a class with fewer images."""
    members = [(y == label).nonzero()[:, 0] for label in range(len(classes))]
    for name, rows in zip(classes, members, strict=True):
        if len(rows) < shots:
            raise UserError(f"fewshot: class {name} has {len(rows)} training images, fewer than shots = {shots}")
    order = Draws(seed, torch.arange(len(y))).bits("fewshot", draws)
    chosen = [[rows[order[rows, i].argsort(stable=True)[:shots]] for rows in members] for i in range(draws)]
    return torch.stack([torch.stack([x[rows].mean(dim=0) for rows in picked]) for picked in chosen])
