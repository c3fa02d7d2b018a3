"""The minimum of softmax cross-entropy with an L2 penalty, by Newton's method with conjugate gradients (Lin, Weng & Keerthi 2008,
"Trust region Newton method for large-scale logistic regression", without the trust region: a line search is enough here).

With separable data and weak penalties the minimum lies far out, where the gradient of the *mean* loss is tiny everywhere. So the
criterion is relative to the objective: the next step would gain less than 1e-7 of it. Objective and gradient are float64; products with
the Hessian are float32, which is enough for a direction and twice as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# It has converged when a full step is expected to gain less than this part of the objective; after the step far less is left.
GAIN = 1e-7
# Where less than this part can be gained, rounding decides whether a step lowers the objective: it ends without one.
ROUNDING = 1e-12
MAX_STEPS = 100
# Conjugate gradients end when the residual, in the norm of the preconditioner, is below this part of the gradient's; where little seems
# left to gain, only below the smaller one, because a rough direction promises too little.
CG_RESIDUAL = 0.3
LAST_RESIDUAL = 0.03
MAX_CG = 1000
# A step is halved until the objective falls by this part of what the slope promises (Armijo's rule).
SLOPE = 1e-4
SMALLEST_STEP = 1e-8


class Rows(NamedTuple):
    """Features in the coordinates in which their squares are uncorrelated, so that the Hessian is nearly diagonal."""

    x: Tensor  # float64 [N, R], R = min(N, D): x = features @ basis
    rough: Tensor  # x in float32
    squares: Tensor  # rough ** 2
    basis: Tensor  # float64 [D, R], orthonormal columns


class Minimum(NamedTuple):
    """Where the search ended. weight: float64 [K, R] in the coordinates of `Rows`. bias: float64 [K]."""

    weight: Tensor
    bias: Tensor
    objective: float  # sum of the losses + |weight|^2 / (2 C)
    iterations: int  # steps of Newton's method
    converged: bool


class _Loss(NamedTuple):
    """Cross-entropy at some logits, precise also where a probability is within 1e-16 of 0 or 1."""

    p: Tensor  # [N, K] probabilities
    error: Tensor  # p - one_hot(target)
    spread: Tensor  # p * (1 - p)


def rotated(x: Tensor) -> Rows:
    """Features float64 [N, D] in new coordinates. The penalty is the same there, and the minimum has no part outside of them."""
    basis = None
    if len(x) < x.shape[1]:
        basis, triangle = torch.linalg.qr(x.T)
        x = triangle.T
    axes = torch.linalg.eigh(x.T @ x).eigenvectors
    x = x @ axes
    rough = x.float()
    return Rows(x, rough, rough.square(), axes if basis is None else basis @ axes)


def minimise(rows: Rows, target: Tensor, c: float, starts: Sequence[tuple[Tensor, Tensor]]) -> Minimum:
    """The minimum over weight and bias of sum of cross-entropies + |weight|^2 / (2 c), from the best of some starts.

    target: int64 [N] in 0..K-1; starts: pairs of weight, float64 [K, R], and bias, float64 [K].
    """
    target = target[:, None]
    begun = [(weight, bias, torch.addmm(bias, rows.x, weight.T)) for weight, bias in starts]
    values = [_objective(logits, target, weight, c) for weight, _, logits in begun]
    value = min(values)
    weight, bias, logits = begun[values.index(value)]
    for step in range(MAX_STEPS + 1):
        loss = _loss(logits, target)
        slope_w, slope_b = torch.addmm(weight / c, loss.error.T, rows.x), loss.error.sum(0)
        if step == MAX_STEPS or not bool(slope_w.any() or slope_b.any()):
            return Minimum(weight, bias, value, step, step < MAX_STEPS)
        move_w, move_b, gain, last = _direction(rows, loss, target, c, slope_w, slope_b, GAIN * value)
        if gain <= ROUNDING * value:
            return Minimum(weight, bias, value, step, last)
        promised = -float((slope_w * move_w).sum() + (slope_b * move_b).sum())
        along = torch.addmm(move_b, rows.x, move_w.T)
        length, ahead = 1.0, value
        while length > SMALLEST_STEP:
            ahead = _objective(logits + length * along, target, weight + length * move_w, c)
            if ahead <= value - SLOPE * length * promised:
                break
            length /= 2
        if ahead > value:  # no length lowers it: rounding, which is fine at the minimum only
            return Minimum(weight, bias, value, step, last)
        weight, bias, logits, value = weight + length * move_w, bias + length * move_b, logits + length * along, ahead
        if last and length == 1.0:
            return Minimum(weight, bias, value, step + 1, True)
    raise AssertionError("unreachable")


def _direction(
    rows: Rows, loss: _Loss, target: Tensor, c: float, slope_w: Tensor, slope_b: Tensor, little: float
) -> tuple[Tensor, Tensor, float, bool]:
    """Newton's direction (weight, bias), what it is expected to gain, and whether that is surely no more than `little`.

    The diagonal preconditions.
    """
    scale_w = 1 / ((loss.spread.T.to(rows.squares) @ rows.squares).double() + 1 / c)
    scale_b = 1 / loss.spread.sum(0).clamp(min=torch.finfo(torch.float64).tiny)
    move_w, move_b = torch.zeros_like(slope_w), torch.zeros_like(slope_b)
    left_w, left_b = -slope_w, -slope_b
    way_w, way_b = scale_w * left_w, scale_b * left_b
    size = first = float((left_w * way_w).sum() + (left_b * way_b).sum())
    gain = 0.0

    def most(over_w: Tensor, over_b: Tensor) -> float:
        """What there is still to gain at most: the penalty alone bends by 1 / c (for the few biases, their own bend stands for a bound)."""
        return float(over_w.square().sum()) * c / 2 + float((over_b.square() * scale_b).sum())

    if most(left_w, left_b) <= little:
        return move_w, move_b, gain, True
    for _ in range(MAX_CG):
        seen = (rows.rough @ way_w.T.to(rows.rough)).double() + way_b
        # Relative to the true class: where its probability is nearly 1, plain differences would be rounding.
        seen -= seen.gather(1, target)
        seen = loss.p * (seen - (loss.p * seen).sum(1, keepdim=True))
        bent_w = (seen.T.to(rows.rough) @ rows.rough).double() + way_w / c
        bent_b = seen.sum(0)
        bend = float((way_w * bent_w).sum() + (way_b * bent_b).sum())
        if not bend > 0:  # only by rounding
            break
        gain += size / bend * size / 2
        move_w, move_b = move_w + size / bend * way_w, move_b + size / bend * way_b
        left_w, left_b = left_w - size / bend * bent_w, left_b - size / bend * bent_b
        good_w, good_b = scale_w * left_w, scale_b * left_b
        size, before = float((left_w * good_w).sum() + (left_b * good_b).sum()), size
        if gain + most(left_w, left_b) <= little:
            return move_w, move_b, gain, True
        if size <= (LAST_RESIDUAL if gain <= little else CG_RESIDUAL) ** 2 * first:
            return move_w, move_b, gain, gain <= little
        way_w, way_b = good_w + size / before * way_w, good_b + size / before * way_b
    return move_w, move_b, gain, False


def _relative(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For logits relative to the true class's: their maximum m, exp(logits - m) without the true class, its sum, and exp(-m)."""
    rest = logits - logits.gather(1, target)
    most = rest.max(1, keepdim=True).values
    rest = (rest - most).exp_().scatter_(1, target, 0.0)
    return most, rest, rest.sum(1, keepdim=True), (-most).exp()


def _objective(logits: Tensor, target: Tensor, weight: Tensor, c: float) -> float:
    most, _, others, own = _relative(logits, target)
    losses = torch.where(most > 0, most + (others + own).log(), torch.log1p(others))
    return float(losses.sum()) + float(weight.square().sum()) / (2 * c)


def _loss(logits: Tensor, target: Tensor) -> _Loss:
    _, rest, others, own = _relative(logits, target)
    total = others + own
    p = (rest / total).scatter_(1, target, own / total)
    error = p.scatter(1, target, -others / total)
    spread = (p * (1 - p)).scatter_(1, target, own / total * (others / total))
    return _Loss(p, error, spread)
