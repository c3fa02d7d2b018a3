"""Multinomial logistic regression on frozen features by L-BFGS, with C chosen on a held-out slice of the training set.

scipy's L-BFGS-B takes the steps; torch computes loss and gradient in float64 on the features' device. So the objective is scikit-learn's,
also on a GPU. C cannot be chosen on test data, as is often done, because no test label enters here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from ..draws import Draws
from ..errors import UserError

_log = logging.getLogger(__name__)

# The grid of DINOv2's evaluation (Oquab et al. 2023, arXiv:2304.07193): 45 values from 1e-6 to 1e5.
C_GRID: tuple[float, ...] = tuple(float(c) for c in np.logspace(-6, 5, 45))
MAX_ITERATIONS = 1000
# Largest entry of the mean loss's gradient that counts as converged. With scikit-learn's 1e-4, weak penalties would stop at the
# solution of the next stronger one, and the candidates would not differ.
TOLERANCE = 1e-5
# Used where nothing can be held out (one image a class): scikit-learn's default.
DEFAULT_C = 1.0


class LogisticRegression(NamedTuple):
    """A fitted classifier: softmax(weight @ standardised x + bias)."""

    weight: Tensor  # float64 [K, D]
    bias: Tensor  # float64 [K]
    mean: Tensor  # float64 [D], of the training features
    scale: Tensor  # float64, one number: the training features' root mean square deviation
    classes: Tensor  # int64 [K]: the class of each row of weight; only those with training images
    C: float
    selected: bool  # C was chosen on a held-out slice

    def logits(self, x: Tensor) -> Tensor:
        """[M, D] -> float64 [M, K], on the device of the weights."""
        return ((x.to(self.mean) - self.mean) / self.scale) @ self.weight.T + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """[M, D] -> class numbers, int64 [M] on the CPU."""
        return self.classes[self.logits(x).argmax(dim=1)].cpu()


def logistic_regression(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    num_classes: int,
    *,
    seed: int,
    values_of_C: Sequence[float] = C_GRID,
) -> tuple[Tensor, float]:
    """(predictions int64 [M], the chosen C); see `fit_choosing_C`."""
    model = fit_choosing_C(train_x, train_y, num_classes, seed=seed, values_of_C=values_of_C)
    return model.predict(test_x), model.C


def fit_choosing_C(
    train_x: Tensor,
    train_y: Tensor,
    num_classes: int,
    *,
    seed: int,
    values_of_C: Sequence[float] = C_GRID,
    fraction: float = 0.2,
) -> LogisticRegression:
    """Fit on 1 - fraction of the training set for each C, choose the best on the rest, and refit on the whole set.

    train_x: [N, D], train_y: int64 [N] in 0..num_classes-1. C: as in scikit-learn, C * sum of losses + |weight|^2 / 2.
    Best means most held-out images right, then lowest held-out loss. With a single C nothing is held out; nor if no class has two images,
    where DEFAULT_C is used.
    Raises UserError for an empty training set, labels out of range, values of C not above 0, or features that are not finite.
    """
    x, y = _checked(train_x, train_y, num_classes)
    grid = sorted({float(c) for c in values_of_C})
    if not grid or grid[0] <= 0 or not math.isfinite(grid[-1]):
        raise UserError(f"logistic regression needs finite values of C above 0, got {list(values_of_C)}")
    if len(grid) == 1:
        return _fit_path(x, y, grid)[0]
    held_out = stratified_slice(y, fraction=fraction, seed=seed).to(x.device)
    if not bool(held_out.any()):
        _log.warning(
            "logistic regression: too few images to hold some out, so C = %g is used without choosing", DEFAULT_C
        )
        return _fit_path(x, y, [DEFAULT_C])[0]
    best = _best(x, y, held_out, grid)
    # Starting from the chosen solution gives the same estimator where the iterations end before convergence.
    return _fit_path(x, y, [best.C], start=best)[0]._replace(selected=True)


def stratified_slice(labels: Tensor, *, fraction: float, seed: int) -> Tensor:
    """Which training images to hold out, bool [N] on the CPU: `fraction` of each class, rounded, but at least one.

    The choice depends on the seed and on the rows of the class; a class with a single image stays in training.
    """
    labels = labels.detach().cpu()
    order = Draws(seed, torch.arange(len(labels))).bits("train-split/held-out", 1)[:, 0]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held_out[rows[order[rows].argsort(stable=True)[:count]]] = True
    return held_out


def _best(x: Tensor, y: Tensor, held_out: Tensor, grid: Sequence[float]) -> LogisticRegression:
    """The classifier that does best on the held-out rows, among those fitted on the other rows."""
    best, best_score = None, (-1, 0.0)
    for model in _fit_path(x[~held_out], y[~held_out], grid):
        logits = model.logits(x[held_out])
        # Every class of the held-out slice also has rows in training, so its column exists.
        column = torch.searchsorted(model.classes, y[held_out])
        score = (int((logits.argmax(dim=1) == column).sum()), -float(cross_entropy(logits, column)))
        if best is None or score > best_score:
            best, best_score = model, score
    assert best is not None
    return best


def _fit_path(
    x: Tensor, y: Tensor, grid: Sequence[float], start: LogisticRegression | None = None
) -> list[LogisticRegression]:
    """One classifier for each C, ascending. Each starts at the solution of the one before, without which weak penalties converge slowly.

    Features are centred and divided by one number, so that one grid of C suits every backbone. Dividing each by its own deviation would
    amplify nearly dead features, which dominate the others on another domain where they are not dead.
    """
    mean = x.mean(dim=0)
    scale = (x - mean).square().mean().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    standard = (x - mean) / scale
    # Only classes with images: the bias of a class without images would fall without limit.
    classes, target = y.unique(return_inverse=True)
    k, dim = len(classes), x.shape[1]
    solution = np.zeros(k * (dim + 1))
    if start is not None:
        solution = torch.cat([start.weight, start.bias[:, None]], dim=1).flatten().cpu().numpy()
    models = []
    for c in grid:
        solution = _minimise(standard, target, k, c, solution)
        weight, bias = torch.from_numpy(solution.copy()).to(x.device).view(k, dim + 1).split([dim, 1], dim=1)
        models.append(LogisticRegression(weight, bias[:, 0], mean, scale, classes, c, False))
    return models


def _minimise(x: Tensor, target: Tensor, k: int, c: float, start: np.ndarray) -> np.ndarray:
    """The minimum over (weight | bias), flat [K * (D + 1)], of mean cross-entropy + |weight|^2 / (2 C N)."""
    n, dim = x.shape
    truth = one_hot(target, k).to(x)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).to(x).view(k, dim + 1)
        weight, bias = parameters[:, :-1], parameters[:, -1]
        log_p = torch.log_softmax(x @ weight.T + bias, dim=1)
        error = (log_p.exp() - truth) / n
        loss = -(log_p * truth).sum() / n + weight.square().sum() / (2 * c * n)
        gradient = torch.cat([error.T @ x + weight / (c * n), error.sum(dim=0)[:, None]], dim=1)
        return float(loss), gradient.flatten().cpu().numpy()

    options = {
        "maxiter": MAX_ITERATIONS,
        "maxfun": 2 * MAX_ITERATIONS,
        "gtol": TOLERANCE,
        "ftol": 64 * np.finfo(float).eps,
    }
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x


def _checked(train_x: Tensor, train_y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Features float64 [N, D] and labels int64 [N] on the features' device."""
    x, y = train_x.detach().double(), train_y.detach().to(train_x.device).long()
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"expected features [N, D] and labels [N], got {tuple(x.shape)} and {tuple(y.shape)}")
    if len(x) == 0:
        raise UserError("logistic regression needs at least one training image, got none")
    if not bool(x.isfinite().all()):
        raise UserError("training features are not finite; the model has diverged")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"training labels lie in {low}..{high}, expected 0..{num_classes - 1}; is a part of the set unlabelled?"
        )
    return x, y
