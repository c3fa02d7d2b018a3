"""Logistic regression on frozen features as a protocol; the solver is in logreg.py."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...core.evaluate.logreg import C_GRID, fit_choosing_C
from .outcome import Outcome, Tests, empty_outcome, record_scores

# `linear` tries these C by default: one a decade.
COARSE_GRID: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3)


def linear(
    train_x: Tensor,
    train_y: Tensor,
    train_keys: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    *,
    C: list[float] | None = None,
) -> Outcome:
    """Logistic regression on frozen features, with the best C on a held-out 20 % of the training images.

    train_x: [N, D]; train_y, train_keys: int64 [N], labels and identities; tests: name -> ([M, D], int64 [M]); classes: names, label i is
    classes[i].

    C: Inverse strengths of the L2 penalty to try, each above 0, as in scikit-learn; a single one is used without choosing. null tries
        1e-4, 1e-3, ..., 1e3.
    """
    return _linear("linear", train_x, train_y, train_keys, tests, classes, seed, COARSE_GRID if C is None else C)


def logreg(
    train_x: Tensor, train_y: Tensor, train_keys: Tensor, tests: Tests, classes: Sequence[str], seed: int
) -> Outcome:
    """DINOv2's logistic regression (Oquab et al. 2023, arXiv:2304.07193): 45 values of C, 1e-6 to 1e5."""
    return _linear("logreg", train_x, train_y, train_keys, tests, classes, seed, C_GRID)


def _linear(
    protocol: str,
    train_x: Tensor,
    train_y: Tensor,
    train_keys: Tensor,
    tests: Tests,
    classes: Sequence[str],
    seed: int,
    grid: Sequence[float],
) -> Outcome:
    """Logistic regression under the name of a protocol."""
    model = fit_choosing_C(train_x, train_y, train_keys, len(classes), seed=seed, values_of_C=grid)
    outcome = empty_outcome("train-split" if model.selected else "last")
    outcome.fits[protocol] = {"choice": [fit._asdict() for fit in model.choice], "refit": model.fit._asdict()}
    if model.selected:
        outcome.chosen[f"{protocol}/C"] = model.C
    for test, (x, labels) in tests.items():
        record_scores(outcome, f"{test}/{protocol}", labels, model.predict(x), classes)
    return outcome
