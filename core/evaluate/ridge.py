"""Ridge regression to labels of +-1 on a few images a class: the few-shot probe of big_vision (evaluators/fewshot_lsr.py).

It has a closed form, and one eigendecomposition serves every strength of the penalty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError

# big_vision's strength of the penalty, for every set and number of shots.
L2 = 2.0**10
# The constant feature, so large that the penalty hardly holds its weight, the bias, back.
CONSTANT = 100.0
# Added to each feature's deviation, so that a feature that is equal in all shots is divided by no 0.
DEVIATION_FLOOR = 1e-5


class Ridge(NamedTuple):
    """Fitted classifiers, one for each strength of the penalty."""

    weight: Tensor  # float64 [L, D + 1, K]; the last row is that of the constant feature
    mean: Tensor  # float64 [D], of the shots
    scale: Tensor  # float64 [D]: their standard deviation (over N, not N - 1) + 1e-5
    l2: tuple[float, ...]  # as given

    def scores(self, x: Tensor) -> Tensor:
        """Features [M, D] -> float64 [L, M, K], on the device of the weights; +1 for the class and -1 for the others is the aim."""
        return _standard(x, self.mean, self.scale) @ self.weight

    def predict(self, x: Tensor) -> Tensor:
        """Features [M, D] -> class numbers, int64 [L, M] on the CPU; the lower one of equals."""
        return self.scores(x).argmax(2).cpu()


def fit_ridge(x: Tensor, y: Tensor, num_classes: int, l2: Sequence[float] = (L2,)) -> Ridge:
    """Minimise |X W - Y|^2 + l2 |W|^2 for each l2, with Y = 2 one_hot - 1, X standardised by the shots and with a constant feature 100.

    x: shots [N, D]; y: int64 [N] in 0..num_classes-1. The constant's weight is penalised as the others. Float64, on the features' device.
    Memory: two square matrices of min(N, D + 1). Time: one eigendecomposition of such a matrix, for any number of l2.
    Raises UserError for no shots, labels out of range, features that are not finite, or an l2 not above 0.
    """
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"expected features [N, D] and labels [N], got {tuple(x.shape)} and {tuple(y.shape)}")
    if not l2 or not all(math.isfinite(value) and value > 0 for value in l2):
        raise UserError(f"ridge regression needs one or more finite l2 above 0, got {list(l2)}")
    if len(x) == 0:
        raise UserError("ridge regression needs at least one training image, got none")
    if int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise UserError(
            f"training labels lie in {int(y.min())}..{int(y.max())}, expected 0..{num_classes - 1}; "
            "is a part of the set unlabelled?"
        )
    x = x.detach().double()
    if not bool(x.isfinite().all()):
        raise UserError("training features are not finite; the model has diverged")
    mean, scale = x.mean(0), x.std(0, correction=0) + DEVIATION_FLOOR
    x = _standard(x, mean, scale)
    aim = torch.full((len(x), num_classes), -1.0).to(x)
    aim[torch.arange(len(x), device=x.device), y.to(x.device).long()] = 1.0
    strengths = x.new_tensor(l2)[:, None, None]
    primal = x.shape[0] >= x.shape[1]
    values, vectors = torch.linalg.eigh(x.T @ x if primal else x @ x.T)
    # V (e + l2)^-1 V' applied to X'Y, or X' of the same applied to Y.
    along = (vectors.T @ (x.T @ aim if primal else aim)) / (values.clamp(min=0.0)[:, None] + strengths)
    weight = vectors @ along
    return Ridge(weight if primal else x.T @ weight, mean, scale, tuple(map(float, l2)))


def _standard(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """[N, D] -> float64 [N, D + 1]."""
    x = (x.detach().to(mean) - mean) / scale
    return torch.cat([x, x.new_full((len(x), 1), CONSTANT)], 1)
