"""Multinomial logistic regression on frozen features, with C chosen on a held-out slice of the training set.

The objective is scikit-learn's; newton.py finds the minima for all values of C at once, on the features' device. C cannot be chosen on
test data, as is often done, because no test label enters here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..errors import UserError
from .held_out import held_out_rows
from .newton import minimise, path_along_C
from .softmax_model import rotated

_log = logging.getLogger(__name__)

# The grid of DINOv2's evaluation (Oquab et al. 2023, arXiv:2304.07193): 45 values from 1e-6 to 1e5.
C_GRID: tuple[float, ...] = tuple(float(c) for c in np.logspace(-6, 5, 45))
# Used where nothing can be held out (one image a class): scikit-learn's default.
DEFAULT_C = 1.0
# Beyond these, the minimum is that of the last C, to all digits, or further out than float64 and half precision can tell.
SMALLEST_C, LARGEST_C = 1e-12, 1e12
# A feature that deviates by less than this part of its mean is constant: rounding in float64 is far below, one step of float16 far above.
CONSTANT_PART = 1e-9


class Fit(NamedTuple):
    """How one minimum was found."""

    C: float
    iterations: int  # steps of Newton's method
    converged: bool


class LogisticRegression(NamedTuple):
    """A fitted classifier: softmax(weight @ standardised x + bias)."""

    weight: Tensor  # float64 [K, D]
    bias: Tensor  # float64 [K]
    mean: Tensor  # float64 [D], of the training features
    scale: (
        Tensor  # float64, the training features' root mean square deviation: one number, or [D] where each has its own
    )
    classes: Tensor  # int64 [K]: the class of each row of weight; only those with training images
    C: float
    fit: Fit  # on the whole training set
    choice: tuple[Fit, ...] = ()  # of each C that was tried, ascending; empty if C was not chosen on a held-out slice
    right: tuple[float, ...] = ()  # the share of the slice that each of them has right
    # float64 [H, K] and int64 [H]: the chosen one's logits on the slice before the refit, and the labels, as class numbers; without
    # images of classes that the fitted part lacks
    held_out: tuple[Tensor, Tensor] | None = None

    @property
    def selected(self) -> bool:
        """Whether C was chosen on a held-out slice."""
        return bool(self.choice)

    def logits(self, x: Tensor) -> Tensor:
        """[M, D] -> float64 [M, K], on the device of the weights."""
        return ((x.to(self.mean) - self.mean) / self.scale) @ self.weight.T + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """[M, D] -> class numbers, int64 [M] on the CPU."""
        return self.classes[self.logits(x).argmax(dim=1)].cpu()


def check_C(values_of_C: Sequence[float], key: str = "logistic regression") -> list[float]:
    """The different values, ascending. Raises UserError, beginning with `key`, unless all lie from SMALLEST_C to LARGEST_C."""
    grid = sorted({float(c) for c in values_of_C})
    if not grid or not all(SMALLEST_C <= c <= LARGEST_C for c in grid):
        raise UserError(
            f"{key}: expected one or more numbers from {SMALLEST_C:g} to {LARGEST_C:g}, got {list(values_of_C)}; 1e-6 to 1e5 is usual"
        )
    return grid


def fit_choosing_C(
    train_x: Tensor,
    train_y: Tensor,
    train_keys: Tensor,
    num_classes: int,
    *,
    seed: int,
    values_of_C: Sequence[float] = C_GRID,
) -> LogisticRegression:
    """Fit on 80 % of the training set for each C, choose the best on the rest (`held_out_rows`), and refit on the whole set.

    train_x: [N, D]; train_y: int64 [N] in 0..num_classes-1; train_keys: int64 [N], identities. C: as in scikit-learn, C * sum of losses +
    |weight|^2 / 2. Best means most held-out images right, then lowest held-out loss. With a single C nothing is held out; nor if no class
    has two identities, where DEFAULT_C is used.
    Raises UserError for an empty training set, labels out of range, values of C not above 0, or features that are not finite.
    """
    x, y = _checked(train_x, train_y, num_classes)
    grid = check_C(values_of_C)
    if len(grid) == 1:
        return fit_path(x, y, grid)[0]
    held_out = held_out_rows(train_keys, y, seed=seed).to(x.device)
    if not bool(held_out.any()):
        _log.warning(
            "logistic regression: too few images to hold some out, so C = %g is used without choosing", DEFAULT_C
        )
        return fit_path(x, y, [DEFAULT_C])[0]
    tried = fit_path(x[~held_out], y[~held_out], grid)
    best, right, logits, labels = _best(tried, x[held_out], y[held_out])
    model = fit_path(x, y, [best.C], start=best)[0]
    told = (all_classes(logits, best.classes, num_classes), labels.cpu()) if len(labels) else None
    return model._replace(choice=tuple(one.fit for one in tried), right=right, held_out=told)


def all_classes(logits: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Logits [M, k] of some classes, int64 [k], as those of all: [M, num_classes] on the CPU, minus infinity for the others."""
    everywhere = logits.new_full((len(logits), num_classes), -torch.inf, device="cpu")
    everywhere[:, classes.cpu()] = logits.cpu()
    return everywhere


def _best(
    tried: Sequence[LogisticRegression], x: Tensor, y: Tensor
) -> tuple[LogisticRegression, tuple[float, ...], Tensor, Tensor]:
    """The classifier with most of the held-out rows right, then with the lowest loss on them; of equals the smallest C.

    Also the share that each has right, and the best one's logits and labels of those rows that count for the loss. A held-out copy may
    have a label that no image of the fitted part has; no classifier can be right there, so it has no part in the loss.
    """
    known = torch.isin(y, tried[0].classes)
    column = torch.searchsorted(tried[0].classes, y[known])
    scores, best = list[tuple[int, float]](), x.new_empty(0)
    for model in tried:
        logits = model.logits(x[known])
        right = int((logits.argmax(dim=1) == column).sum())
        scores.append((right, -float(cross_entropy(logits, column, reduction="sum"))))
        best = logits if scores[-1] > max(scores[:-1], default=(-1, 0.0)) else best
    return tried[scores.index(max(scores))], tuple(hits / len(y) for hits, _ in scores), best, y[known]


def fit_path(
    x: Tensor,
    y: Tensor,
    grid: Sequence[float],
    start: LogisticRegression | None = None,
    *,
    standardised: bool = False,
) -> list[LogisticRegression]:
    """One classifier for each C, ascending, all found together. start: where the search begins if there is a single C.

    x: float64 [N, D]; y: int64 [N], on the same device. Features are centred and divided by one number, so that one grid of C suits every
    backbone. Dividing each by its own deviation (standardised) would amplify nearly dead features, which dominate the others on another
    domain where they are not dead; a feature without any deviation stays as it is.
    """
    mean, scale = mean_and_scale(x, standardised=standardised)
    rows = rotated((x - mean) / scale)
    # Only classes with images: the bias of a class without images would fall without limit.
    classes, target = y.unique(return_inverse=True)
    if start is not None and len(grid) == 1 and torch.equal(start.classes, classes):
        found = minimise(rows, target, x.new_tensor(grid), (start.weight @ rows.basis)[None], start.bias[None])
    else:
        found = path_along_C(rows, target, grid, len(classes))
    models = []
    for i, c in enumerate(grid):
        fit = Fit(c, int(found.iterations[i]), bool(found.converged[i]))
        if not fit.converged:
            _log.warning("logistic regression: C = %g did not converge in %d iterations", c, fit.iterations)
        weight = found.weight[i] @ rows.basis.T
        models.append(LogisticRegression(weight, found.bias[i], mean, scale, classes, c, fit))
    return models


def mean_and_scale(x: Tensor, *, standardised: bool = False) -> tuple[Tensor, Tensor]:
    """The mean [D] of features float64 [N, D], and their root mean square deviation, one number, or [D] where standardised."""
    mean = x.mean(dim=0)
    if standardised:
        scale = (x - mean).square().mean(dim=0).sqrt()
        # The deviation of a constant is not 0 but the rounding of its mean.
        return mean, torch.where(scale > CONSTANT_PART * mean.abs(), scale, 1.0)
    scale = (x - mean).square().mean().sqrt()
    return mean, torch.where(scale > 0, scale, 1.0)


def check_features(x: Tensor) -> None:
    """Raises UserError for training features [N, D] without a row, or that are not finite."""
    if len(x) == 0:
        raise UserError("logistic regression needs at least one training image, got none")
    if not bool(x.isfinite().all()):
        raise UserError("training features are not finite; the model has diverged")


def _checked(train_x: Tensor, train_y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Features float64 [N, D] and labels int64 [N] on the features' device."""
    x, y = train_x.detach().double(), train_y.detach().to(train_x.device).long()
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"expected features [N, D] and labels [N], got {tuple(x.shape)} and {tuple(y.shape)}")
    check_features(x)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"training labels lie in {low}..{high}, expected 0..{num_classes - 1}; is a part of the set unlabelled?"
        )
    return x, y
