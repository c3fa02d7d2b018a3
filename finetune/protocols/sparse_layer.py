"""Softmax regression with an L1 penalty: a last layer most of whose weights are 0, by proximal gradient steps with momentum.

FISTA (Beck & Teboulle 2009) with steps as long as the loss allows, and with the restarts of O'Donoghue & Candes 2015 (arXiv:1204.3982), in
float64 on all rows at once, so nothing is drawn. The biases have no penalty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MOST_STEPS_OF_FISTA = 1000
# The search ends where no weight's optimality condition is missed by more than this part of the penalty.
OPTIMAL = 1e-2
CHECKED_EVERY = 20
LONGER = 1.3  # by how much each step tries to be longer than the last one


class SparseLayer(NamedTuple):
    """logits = (x - mean) / scale @ weight.T + bias. weight: float64 [K, J]; bias: float64 [K]; mean: [J]; scale: one number."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    classes: Tensor  # int64 [K], the class of each row; only those with training images
    C: float
    iterations: int
    converged: bool

    def logits(self, x: Tensor, num_classes: int) -> Tensor:
        """[M, J] -> float64 [M, num_classes]; minus infinity for classes without training images."""
        found = ((x.to(self.mean) - self.mean) / self.scale) @ self.weight.T + self.bias
        whole = found.new_full((len(x), num_classes), -torch.inf)
        whole[:, self.classes] = found
        return whole


def fit_sparse(x: Tensor, y: Tensor, C: float, start: SparseLayer | None = None) -> SparseLayer:
    """The minimum of C * sum of cross-entropies + |weight|_1, for features that are centred and divided by one number.

    x: [N, J]; y: int64 [N]. start: a layer of the same rows and classes, from which the search begins.
    """
    x = x.double()
    mean = x.mean(0)
    deviation = (x - mean).square().mean().sqrt()
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    rows = (x - mean) / scale
    classes, target = y.unique(return_inverse=True)
    hot = torch.nn.functional.one_hot(target, len(classes)).double()
    penalty = 1.0 / (C * len(rows))
    wide = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    # The Hessian of the mean cross-entropy is at most half of the rows' second moments (Boehning 1992), so such a step never fails.
    safe = 1.0 / (0.5 * torch.linalg.eigvalsh(wide.T @ wide / len(wide))[-1])
    own = wide.new_zeros(len(classes), wide.shape[1])
    if start is not None:
        own = torch.cat([start.weight, start.bias[:, None]], 1)
    ahead, speed, step, done, iterations = own, 1.0, safe, False, 0
    while iterations < MOST_STEPS_OF_FISTA and not done:
        moved, step = _proximal_step(wide, hot, ahead, step, safe, penalty)
        if float(((ahead - moved) * (moved - own)).sum()) > 0:  # momentum leads uphill
            speed = 1.0
        after = (1 + (1 + 4 * speed**2) ** 0.5) / 2
        ahead, own, speed = moved + (speed - 1) / after * (moved - own), moved, after
        iterations += 1
        done = iterations % CHECKED_EVERY == 0 and violation(wide, hot, own, penalty) <= OPTIMAL * penalty
    return SparseLayer(own[:, :-1], own[:, -1], mean, scale, classes, C, iterations, done)


def _proximal_step(
    wide: Tensor, hot: Tensor, ahead: Tensor, step: Tensor, safe: Tensor, penalty: float
) -> tuple[Tensor, Tensor]:
    """(weights after a step, its length): longer than the last one, and then halved until the quadratic model bounds the loss there.

    Where classes are told apart the loss is much flatter than its bound, so steps grow to many times `safe`.
    """
    scores = wide @ ahead.T
    value, slope = _mean_loss(scores, hot), (scores.softmax(1) - hot).T @ wide / len(wide)
    step = LONGER * step
    while True:
        moved = _shrunk(ahead - step * slope, step * penalty)
        way = moved - ahead
        bound = value + (slope * way).sum() + way.square().sum() / (2 * step)
        if step <= safe or _mean_loss(wide @ moved.T, hot) <= bound:
            return moved, step
        step = torch.maximum(step / 2, safe)


def _mean_loss(scores: Tensor, hot: Tensor) -> Tensor:
    return (scores.logsumexp(1) - (scores * hot).sum(1)).mean()


def _shrunk(weight: Tensor, by: Tensor) -> Tensor:
    """The proximal step of the L1 norm; the last column, the biases, stays."""
    small = weight[:, :-1].abs() - by
    return torch.cat([weight[:, :-1].sign() * small.clamp(min=0), weight[:, -1:]], 1)


def violation(wide: Tensor, hot: Tensor, own: Tensor, penalty: float) -> float:
    """By how much the worst weight misses its optimality condition: gradient = -penalty * sign, or at most penalty where it is 0."""
    slope = ((wide @ own.T).softmax(1) - hot).T @ wide / len(wide)
    weight = own[:, :-1]
    inner = slope[:, :-1]
    missed = torch.where(weight == 0, (inner.abs() - penalty).clamp(min=0), (inner + penalty * weight.sign()).abs())
    return max(float(missed.max()) if missed.numel() else 0.0, float(slope[:, -1].abs().max()))
