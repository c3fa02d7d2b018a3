"""Few-shot classification on frozen features: the nearest class mean of a handful of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...core.draws import Draws
from ...core.errors import UserError
from ...core.evaluate.intervals import mean_interval
from ...core.images.split import keys_by_class
from .outcome import Outcome, Tests, empty_outcome, record_scores

# More would take hours and much memory, and narrow the interval by nothing that is seen.
MOST_DRAWS = 10_000


def fewshot(
    train_x: Tensor,
    train_y: Tensor,
    train_keys: Tensor,
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
    The images of a draw are different ones: at most one copy or blend of a picture is among them.
    train_x: [N, D]; train_y, train_keys: int64 [N], labels and identities; tests: name -> ([M, D], int64 [M]); classes: names, label i is
    classes[i].

    shots: Different training images a class, 1 or more; each class needs as many.
    draws: Number of random choices of these images over which the score is averaged, 1 to 10,000.
    """
    check_fewshot(shots, draws, train_keys, train_y, classes)
    train_x, train_y, train_keys = train_x.float().cpu(), train_y.cpu(), train_keys.cpu()
    centre = train_x.mean(dim=0)
    rows = _drawn(train_keys, train_y, seed, shots, draws)
    means = normalize(train_x - centre, dim=1)[rows].mean(dim=2)
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


def check_fewshot(shots: int, draws: int, train_keys: Tensor, train_y: Tensor, classes: Sequence[str]) -> None:
    """Raises UserError for numbers below 1 and for a class with fewer different images. train_keys, train_y: int64 [N]."""
    if shots < 1 or draws < 1:
        raise UserError(f"fewshot needs shots and draws of at least 1, got {shots} and {draws}")
    if draws > MOST_DRAWS:
        raise UserError(
            f"fewshot: draws is {draws}, expected at most {MOST_DRAWS:,}; a hundred are enough for a narrow interval"
        )
    found = keys_by_class(train_keys.cpu(), train_y.cpu())
    counts = [len(found[label]) if label in found else 0 for label in range(len(classes))]
    for name, count in zip(classes, counts, strict=True):
        if count < shots:
            least = min(counts)
            remedy = f"give evaluate.fewshot.shots of at most {least}" if least else "leave the class out"
            raise UserError(
                f"fewshot: class {name} has {count} different training images, fewer than shots = {shots}; {remedy}, or add images"
            )


def _drawn(keys: Tensor, y: Tensor, seed: int, shots: int, draws: int) -> Tensor:
    """For each draw and class the rows of `shots` identities, int64 [draws, K, shots]; of an identity one random image of its class.

    A draw depends on the seed and the identities, not on the order of images. keys, y: int64 [N].
    """
    picked = []
    for label, own in keys_by_class(keys, y).items():
        order = Draws(seed, own).bits("fewshot", draws)
        which = Draws(seed, own).uniform("fewshot/image", draws)
        chosen = order.argsort(dim=0, stable=True)[:shots].T  # [draws, shots]
        rows = ((y == label) & torch.isin(keys, own)).nonzero()[:, 0]
        rows = rows[torch.searchsorted(own, keys[rows]).argsort(stable=True)]
        counts = torch.searchsorted(own, keys[rows]).bincount(minlength=len(own))
        at = counts.cumsum(0) - counts + (which.T * counts).long()  # [draws, identities]
        picked.append(rows[at.gather(1, chosen)])
    return torch.stack(picked, dim=1)
