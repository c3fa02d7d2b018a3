"""Weighted cosine kNN on frozen features, with the settings of lightly's and DINO's evaluations as presets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.held_out import held_out_rows, nothing_to_choose_on
from ...core.evaluate.knn import knn_predict, neighbours, say_clipped, vote
from .outcome import Outcome, Tests, empty_outcome, record_scores

# Published settings.
PRESETS: dict[str, dict[str, Any]] = {
    "knn-lightly": {"k": 200, "temperature": 0.1},
    "knn-dino": {"k": [10, 20, 100, 200], "temperature": 0.07},
}


def knn(
    train_x: Tensor,
    train_y: Tensor,
    train_keys: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    *,
    k: int | list[int] = 20,
    temperature: float | None = 0.07,
) -> Outcome:
    """Weighted cosine kNN on frozen features (see `core.evaluate.knn.knn_predict`).

    train_x: [N, D]; train_y, train_keys: int64 [N], labels and identities; tests: name -> ([M, D], int64 [M]); classes: names, label i is
    classes[i]. A row is a neighbour, so the caller leaves copies out (`distinct_rows`): with n copies of all images, k would mean k / n
    of them.

    k: Number of different training pictures that vote, 1 or more; all of them if there are fewer. Of a list, whose values may not exceed
        their number, the k that is best on a held-out 20 % of the training images is used.
    temperature: Temperature of the weights exp(cosine / temperature) of their votes, above 0; null gives equal weights.
    """
    return _knn("knn", train_x, train_y, train_keys, tests, classes, seed, k, temperature)


def knn_lightly(
    train_x: Tensor, train_y: Tensor, train_keys: Tensor, tests: Tests, classes: Sequence[str], seed: int
) -> Outcome:
    """lightly's benchmark kNN: k = 200, T = 0.1. Its tables show the maximum over epochs; this is one model's score."""
    return _knn("knn-lightly", train_x, train_y, train_keys, tests, classes, seed, **PRESETS["knn-lightly"])


def knn_dino(
    train_x: Tensor, train_y: Tensor, train_keys: Tensor, tests: Tests, classes: Sequence[str], seed: int
) -> Outcome:
    """DINO's kNN (Caron et al. 2021, arXiv:2104.14294): T = 0.07, k of 10, 20, 100, 200 chosen on the held-out slice."""
    return _knn("knn-dino", train_x, train_y, train_keys, tests, classes, seed, **PRESETS["knn-dino"])


def _knn(
    protocol: str,
    train_x: Tensor,
    train_y: Tensor,
    train_keys: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    k: int | Sequence[int],
    temperature: float | None,
) -> Outcome:
    """kNN under the name of a protocol."""
    check_knn(protocol, k, temperature, train_keys, train_y)
    candidates = _candidates(k)
    best, selection = min(candidates[0], len(train_y)), "last"
    if len(candidates) > 1:
        held_out = held_out_rows(train_keys, train_y, seed=seed)
        best, selection = _best_k(train_x, train_y, held_out, len(classes), candidates, temperature), "train-split"
    outcome = empty_outcome(selection)
    if selection == "train-split":
        outcome.chosen[f"{protocol}/k"] = best
    predict = partial(knn_predict, train_x, train_y, num_classes=len(classes), k=best, temperature=temperature)
    for test, (x, labels) in tests.items():
        record_scores(outcome, f"{test}/{protocol}", labels, predict(test_x=x), classes)
        outcome.details[f"{test}/{protocol}"]["k"] = best
    return outcome


def check_knn(
    protocol: str, k: int | Sequence[int], temperature: float | None, train_keys: Tensor, train_y: Tensor
) -> None:
    """Raises UserError for settings that kNN cannot have on this training set. train_keys, train_y: int64 [N]."""
    candidates, n = _candidates(k), len(train_y)
    if not candidates:
        raise UserError(f"{protocol} needs at least one k, got an empty list")
    if candidates[0] < 1:
        raise UserError(f"{protocol} needs k of at least 1, got {candidates[0]}")
    # A single k above n is the vote of all training images, as configs that ship need it on a handful of pictures; a preset is its k.
    if candidates[-1] > n and len(candidates) == 1 and protocol == "knn":
        say_clipped(candidates[-1], n)
    elif candidates[-1] > n:
        raise UserError(
            f"{protocol} needs {candidates[-1]} different training images for k = {candidates[-1]}, and there are {n}; "
            f"give evaluate.knn.k of at most {n}, or more images"
        )
    if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
        raise UserError(f"{protocol} needs a temperature above 0 (or null, for equal votes), got {temperature}")
    if len(candidates) > 1 and nothing_to_choose_on(train_keys, train_y):
        raise UserError(
            f"{protocol}: no class has two different training images to choose k of {candidates} on; give a single k"
        )


def _candidates(k: int | Sequence[int]) -> list[int]:
    return [k] if isinstance(k, int) else sorted(set(k))


def _best_k(
    train_x: Tensor,
    train_y: Tensor,
    held_out: Tensor,
    num_classes: int,
    candidates: Sequence[int],
    temperature: float | None,
) -> int:
    """The k with the most correct predictions on the held-out rows; of equals the smallest. One search serves all k."""
    x, y = train_x.cpu(), train_y.cpu().long()
    similarity, rows = neighbours(x[~held_out], x[held_out], candidates[-1])
    near = y[~held_out][rows]
    right = [
        int((vote(similarity[:, :k], near[:, :k], num_classes, temperature) == y[held_out]).sum()) for k in candidates
    ]
    return candidates[right.index(max(right))]
