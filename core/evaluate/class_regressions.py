"""A binary logistic regression for each class, where an image may have several classes, or none. One C is chosen for all classes.

The objective of a class is scikit-learn's: C * sum of log(1 + exp(-+z)) + |weight|^2 / 2. newton.py minimises it as a softmax over "not
there" and "there" with C / 2: of two weights whose difference is w, the penalty is least for -w / 2 and w / 2, and is then that of w.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .held_out import held_out_rows
from .logreg import DEFAULT_C, check_C, check_features, mean_and_scale
from .multilabel import binary_cross_entropy
from .newton import minimise, path_along_C
from .ranking import macro_over_classes
from .softmax_model import Rows, rotated

_log = logging.getLogger(__name__)


class Tried(NamedTuple):
    """One value of C, fitted without the slice. converged: of all classes; iterations: of the class with most."""

    C: float
    average_precision: float  # macro AP on the slice, over the classes that it has; 0 if it has none
    bce: float  # on the slice
    iterations: int
    converged: bool


class ClassRegressions(NamedTuple):
    """A fitted classifier of K classes: sigmoid(weight @ scaled x + bias), each class on its own.

    A class that all training images have, or none, has no minimum: its weight is 0, and its bias log((n + 1/2) / (N - n + 1/2)) for n of N
    images.
    """

    weight: Tensor  # float64 [K, D]
    bias: Tensor  # float64 [K]
    mean: Tensor  # float64 [D], of the training features
    scale: Tensor  # float64, one number: the training features' root mean square deviation
    C: float
    iterations: tuple[int, ...]  # of each class; 0 for those without a minimum
    converged: bool
    tried: tuple[Tried, ...] = ()  # ascending; empty where nothing could be held out
    # float64 [H, K] and uint8 [H, K]: logits of C on the slice before the refit, and its labels
    held_out: tuple[Tensor, Tensor] | None = None

    def logits(self, x: Tensor) -> Tensor:
        """[M, D] -> float64 [M, K], on the CPU."""
        return (((x.to(self.mean) - self.mean) / self.scale) @ self.weight.T + self.bias).cpu()


def fit_classes_choosing_C(
    train_x: Tensor, labels: Tensor, keys: Tensor, *, seed: int, values_of_C: Sequence[float]
) -> ClassRegressions:
    """Fit each C without a slice of the training set, choose the best on the slice (`held_out_rows`), and refit the whole set.

    train_x: [N, D]; labels: uint8 [N, K]; keys: int64 [N], identities. Best means the highest macro AP, then the lowest BCE, of equals the
    smallest C. A single C is fitted without the slice too, since thresholds are chosen there. Where nothing can be held out, several C
    become DEFAULT_C. Raises UserError for an empty training set, values of C out of range, and features that are not finite.
    """
    x, labels = train_x.detach().double(), labels.detach().to(train_x.device)
    check_features(x)
    grid = check_C(values_of_C)
    outer = held_out_rows(keys, labels, seed=seed).to(x.device)
    if not bool(outer.any()):
        if len(grid) > 1:
            _log.warning("logistic regression: too few images to hold some out, so C = %g is used", DEFAULT_C)
        return fit_classes(x, labels, grid if len(grid) == 1 else [DEFAULT_C])[0]
    inner = fit_classes(x[~outer], labels[~outer], grid)
    held, truth = [model.logits(x[outer]) for model in inner], labels[outer].cpu()
    there = truth.numpy().astype(bool)
    tried = [_tried(model, logits.numpy(), there) for model, logits in zip(inner, held, strict=True)]
    best = max(range(len(grid)), key=lambda i: (tried[i].average_precision, -tried[i].bce))
    model = fit_classes(x, labels, [grid[best]], start=inner[best])[0]
    return model._replace(tried=tuple(tried), held_out=(held[best], truth))


def _tried(model: ClassRegressions, logits: np.ndarray, there: np.ndarray) -> Tried:
    precision = float(macro_over_classes("average_precision", logits, there)[0])
    error = binary_cross_entropy(logits, there)
    return Tried(
        model.C, 0.0 if np.isnan(precision) else precision, error, max(model.iterations, default=0), model.converged
    )


def fit_classes(
    x: Tensor, labels: Tensor, grid: Sequence[float], start: ClassRegressions | None = None
) -> list[ClassRegressions]:
    """A classifier for each C, ascending; of a class, all C are found together. start: where the search begins if there is a single C.

    x: float64 [N, D]; labels: uint8 [N, K], on the same device. Features are centred and divided by one number, as in `fit_path`.
    Memory beyond a single class's (`path_along_C`): 8 bytes for each of the C x K x D weights.
    """
    mean, scale = mean_and_scale(x)
    rows = rotated((x - mean) / scale)
    n, k = labels.shape
    weight, bias = x.new_zeros(len(grid), k, x.shape[1]), x.new_zeros(len(grid), k)
    iterations, converged = torch.zeros(len(grid), k, dtype=torch.int64), torch.ones(len(grid), k, dtype=torch.bool)
    for c in range(k):
        count = int(labels[:, c].sum())
        if count in (0, n):
            bias[:, c] = float(np.log((count + 0.5) / (n - count + 0.5)))
            continue
        first = None if start is None or len(grid) > 1 else (start.weight[c], start.bias[c])
        weight[:, c], bias[:, c], iterations[:, c], converged[:, c] = _one_class(rows, labels[:, c].long(), grid, first)
    for i, value in enumerate(grid):
        if left := int((~converged[i]).sum()):
            _log.warning("logistic regression: C = %g did not converge for %d of %d classes", value, left, k)
    return [
        ClassRegressions(
            weight[i], bias[i], mean, scale, value, tuple(iterations[i].tolist()), bool(converged[i].all())
        )
        for i, value in enumerate(grid)
    ]


def _one_class(
    rows: Rows, target: Tensor, grid: Sequence[float], start: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights float64 [C, D], biases [C], iterations and convergence [C] of one class; target: int64 [N], 1 where it is there."""
    halves = [c / 2 for c in grid]
    if start is None:
        found = path_along_C(rows, target, halves, 2)
    else:
        weight, bias = (torch.stack([-one / 2, one / 2])[None] for one in start)
        found = minimise(rows, target, rows.x.new_tensor(halves), weight @ rows.basis, bias)
    weight = (found.weight[:, 1] - found.weight[:, 0]) @ rows.basis.T
    return weight, found.bias[:, 1] - found.bias[:, 0], found.iterations.cpu(), found.converged.cpu()
