"""Weighted cosine kNN on frozen features, with the settings of lightly's and DINO's evaluations as presets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.knn import knn_predict, neighbours, vote
from ...core.evaluate.logreg import stratified_slice
from .outcome import Outcome, Tests, empty_outcome, record_scores


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
    """Weighted cosine kNN on frozen features (see `core.evaluate.knn.knn_predict`).

    train_x: [N, D], train_y: int64 [N]; tests: name -> ([M, D], int64 [M]); classes: names, label i is classes[i].

    k: Number of neighbours that vote, 1 or more. Of a list, the k that is best on a held-out 20 % of the training features is used.
    temperature: Temperature of the weights exp(cosine / temperature) of their votes, above 0; null gives equal weights.
    """
    return _knn("knn", train_x, train_y, tests, classes, seed, k, temperature)


def knn_lightly(train_x: Tensor, train_y: Tensor, tests: Tests, classes: Sequence[str], seed: int) -> Outcome:
    """lightly's benchmark kNN: k = 200, T = 0.1. Its tables show the maximum over epochs; this is one model's score."""
    return _knn("knn-lightly", train_x, train_y, tests, classes, seed, 200, 0.1)


def knn_dino(train_x: Tensor, train_y: Tensor, tests: Tests, classes: Sequence[str], seed: int) -> Outcome:
    """DINO's kNN (Caron et al. 2021, arXiv:2104.14294): T = 0.07, k of 10, 20, 100, 200 chosen on the held-out slice."""
    return _knn("knn-dino", train_x, train_y, tests, classes, seed, [10, 20, 100, 200], 0.07)


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
    """kNN under the name of a protocol."""
    candidates = [k] if isinstance(k, int) else sorted(set(k))
    if not candidates:
        raise UserError(f"{protocol} needs at least one k, got an empty list")
    best, selection = candidates[0], "last"
    if len(candidates) > 1:
        best, selection = _best_k(train_x, train_y, len(classes), seed, candidates, temperature), "train-split"
    outcome = empty_outcome(selection)
    if selection == "train-split":
        outcome.chosen[f"{protocol}/k"] = best
    predict = partial(knn_predict, train_x, train_y, num_classes=len(classes), k=best, temperature=temperature)
    for test, (x, labels) in tests.items():
        record_scores(outcome, f"{test}/{protocol}", labels, predict(test_x=x), classes)
    return outcome


def _best_k(
    train_x: Tensor, train_y: Tensor, num_classes: int, seed: int, candidates: Sequence[int], temperature: float | None
) -> int:
    """The k with the most correct predictions on the held-out training slice; of equals the smallest. One search serves all k."""
    held_out = stratified_slice(train_y, fraction=0.2, seed=seed)
    if not bool(held_out.any()):
        raise UserError(f"kNN: no class has two training images to choose k of {list(candidates)} on; give a single k")
    x, y = train_x.cpu(), train_y.cpu().long()
    similarity, rows = neighbours(x[~held_out], x[held_out], candidates[-1])
    near = y[~held_out][rows]
    right = [
        int((vote(similarity[:, :k], near[:, :k], num_classes, temperature) == y[held_out]).sum()) for k in candidates
    ]
    return candidates[right.index(max(right))]
