"""The minima of softmax cross-entropy with an L2 penalty for many values of C at once, by Newton's method with conjugate gradients (Lin,
Weng & Keerthi 2008, "Trust region Newton method for large-scale logistic regression", without the trust region: a line search is enough).

With separable data and weak penalties the minimum lies far out, where the gradient of the *mean* loss is tiny everywhere. So the
criterion is relative to the objective: what is still to gain is less than 1e-7 of it. L-BFGS needs many times as many passes over the
features there. The search is float32 until less than 1e-5 can be gained, and float64 from there; products with the Hessian stay float32,
which is enough for a direction.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .softmax_model import Model, Rows, hessian_product, objective, quadratic_model

# It has converged when a full step is expected to gain less than this part of the objective; after the step far less is left.
GAIN = 1e-7
# The same of the first part of the search, which is float32.
ROUGH_GAIN = 1e-5
# In float32 an objective is no larger unless it is by this part of it.
ROUGH_SLACK = 2e-6
# Where less than this part can be gained, rounding decides whether a step lowers the objective: it ends without one.
ROUNDING = 1e-12
MAX_STEPS = 100
# Conjugate gradients end when the residual, in the norm of the preconditioner, is below this part of the gradient's; where little seems
# left to gain, only below the smaller one, because a rough direction promises too little.
CG_RESIDUAL = 0.3
LAST_RESIDUAL = 0.03
MAX_CG = 1000
SMALLEST_STEP = 1e-8
# Values of C are searched together as long as M x K x N is no more than this (335 MB). One alone may be larger: 1 GB for 50,000 images of
# 1000 classes.
TOGETHER = 1 << 24
# Neighbours in the first wave of a path, which starts from zeros, lie up to so many decades of C apart: of 1, 2, 4 and 8, this was fastest.
FIRST_WAVE = 4.0
# The start of a later wave is interpolated through four neighbours unless their weights' absolute sum is above this (uneven grids).
WILD = 2.0


class Minima(NamedTuple):
    """Where the M searches ended. Weights are in the coordinates of `Rows`."""

    weight: Tensor  # float64 [M, K, R]
    bias: Tensor  # float64 [M, K]
    objective: Tensor  # float64 [M]: sum of the losses + |weight|^2 / (2 C)
    iterations: Tensor  # int64 [M]: steps of Newton's method
    converged: Tensor  # bool [M]


class _Direction(NamedTuple):
    """The step that the models ask for."""

    weight: Tensor  # float64 [M, K, R]
    bias: Tensor  # float64 [M, K]
    gain: Tensor  # float64 [M]: what the model expects of it
    last: Tensor  # bool [M]: it has no more than `little` to gain from where it stands


def minimise(rows: Rows, target: Tensor, c: Tensor, weight: Tensor, bias: Tensor) -> Minima:
    """The minima over weight and bias of sum of cross-entropies + |weight|^2 / (2 c), for all values of c together.

    target: int64 [N] in 0..K-1; c: float64 [M]; weight, bias: float64 [M, K, R] and [M, K], where each search starts.
    Memory: at most 20 bytes for each of the M x K x N probabilities, and some ten times that of the weights.
    """
    nothing = torch.zeros(len(c), dtype=torch.int64, device=c.device)
    found = Minima(weight.clone(), bias.clone(), torch.zeros_like(c), nothing, nothing.bool())
    _search(rows, target, c, found, rough=True)
    _search(rows, target, c, found, rough=False)
    return found


def _search(rows: Rows, target: Tensor, c: Tensor, found: Minima, *, rough: bool) -> None:
    """Move each of `found` until its next step would gain little, in float32 or float64. Those that have ended leave the batch."""
    least, slack = (ROUGH_GAIN, ROUGH_SLACK) if rough else (GAIN, 0.0)
    live = (found.iterations < MAX_STEPS).nonzero()[:, 0]
    model = quadratic_model(rows, target, found.weight[live], found.bias[live], c[live], rough=rough)
    found.objective[live] = model.value
    while len(live):
        step = _direction(rows, target, model, c[live], least * model.value)
        moves = step.gain > ROUNDING * model.value
        length, on, final = moves.double(), moves & ~step.last, moves & step.last
        at = found.weight[live], found.bias[live]
        ends = _ended(at, step, length)
        ahead = quadratic_model(rows, target, ends[0][on], ends[1][on], c[live[on]], rough=rough)
        value, highest = model.value.clone(), model.value * (1 + slack)
        value[on] = ahead.value
        value[final] = objective(rows, target, ends[0][final], ends[1][final], c[live[final]], rough=rough)
        if bool((worse := ~(value <= highest)).any()):
            while bool((high := ~(value <= highest) & (length > 0)).any()):
                length[high] /= 2
                length[length < SMALLEST_STEP] = 0.0
                ends = _ended(at, step, length)
                value[high] = objective(rows, target, ends[0][high], ends[1][high], c[live[high]], rough=rough)
                value = torch.where(length > 0, value, model.value)
            on = (on | worse) & (length > 0)
            ahead = quadratic_model(rows, target, ends[0][on], ends[1][on], c[live[on]], rough=rough)
        found.weight[live], found.bias[live] = ends
        found.objective[live] = value
        found.iterations[live] += length > 0
        if not rough:
            found.converged[live] = step.last & ~on
        patient = found.iterations[live[on]] < MAX_STEPS
        live, model = live[on][patient], ahead.only(patient)


def _ended(at: tuple[Tensor, Tensor], step: _Direction, length: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases after a part of their steps."""
    return at[0] + length[:, None, None] * step.weight, at[1] + length[:, None] * step.bias


def _direction(rows: Rows, target: Tensor, model: Model, c: Tensor, little: Tensor) -> _Direction:
    """Minimise the models by conjugate gradients, preconditioned by the diagonal, until little is left to gain.

    What is left is bounded from above by the penalty, since with the biases eliminated no curvature lies below its 1 / c: by the residual,
    |left|^2 c / 2, and by Gauss-Radau quadrature (Meurant & Tichy 2013, "On computing quadrature-based bounds for the A-norm of the error
    in conjugate gradients"). Both are proofs for the model, apart from the rounding of float32 products. Only where neither is below
    `little` soon does a small residual end the search: that is an estimate.
    """
    out = _Direction(torch.zeros_like(model.left), model.shift.clone(), model.gain.clone(), torch.zeros_like(c).bool())
    live = torch.arange(len(c), device=c.device)
    way = model.scale * model.left
    size = (model.left * way).sum((1, 2))
    floor = model.scale.amin((1, 2)) / c  # no eigenvalue of the preconditioned Hessian is smaller
    run = _Run(*out[:3], model.left, way, size, size, floor, 1 / floor, c, little)
    for turn in range(MAX_CG + 1):
        most = torch.minimum(run.left.square().sum((1, 2)) * run.c, run.radau * run.size) / 2
        sure, small = run.gain + most <= run.little, run.gain <= run.little
        end = sure | (run.size <= torch.where(small, LAST_RESIDUAL, CG_RESIDUAL) ** 2 * run.first) | (turn == MAX_CG)
        if bool(end.any()):
            ended = live[end]
            out.weight[ended], out.bias[ended], out.gain[ended] = run.weight[end], run.bias[end], run.gain[end]
            out.last[ended] = (sure | small)[end] & (turn < MAX_CG)
            if bool(end.all()):
                break
            live, model, run = live[~end], model.only(~end), _Run(*(field[~end] for field in run))
        run = _turned(rows, target, model, run)
    return out


class _Run(NamedTuple):
    """The state of conjugate gradients; arrays as in `Model`, numbers float64 [M]."""

    weight: Tensor
    bias: Tensor
    gain: Tensor
    left: Tensor  # the residual
    way: Tensor  # the search direction
    size: Tensor  # the residual's squared norm in the preconditioner's metric
    first: Tensor  # the first `size`
    floor: Tensor  # a lower bound of the eigenvalues
    radau: Tensor  # size * radau bounds twice the gain that is left
    c: Tensor
    little: Tensor


def _turned(rows: Rows, target: Tensor, model: Model, run: _Run) -> _Run:
    """One iteration of conjugate gradients."""
    turn, shift = hessian_product(rows, target, model, run.way, run.c)
    bend = (run.way * turn).sum((1, 2))  # above 0: the penalty alone is
    rate = run.size / bend
    left = run.left - rate[:, None, None] * turn
    good = model.scale * left
    size = (left * good).sum((1, 2))
    ratio = size / run.size
    rest = (run.radau - rate).clamp(min=0.0)
    return run._replace(
        weight=run.weight + rate[:, None, None] * run.way,
        bias=run.bias + rate[:, None] * shift,
        gain=run.gain + rate * run.size / 2,
        left=left,
        way=good + ratio[:, None, None] * run.way,
        size=size,
        radau=rest / (run.floor * rest + ratio),
    )


def path_along_C(rows: Rows, target: Tensor, grid: Sequence[float], num_classes: int) -> Minima:
    """The minima for an ascending grid of C, in waves: a coarse grid from zeros, then what lies between, ever finer.

    The solution moves smoothly with log C, so a later wave starts from an interpolation, close to its ends. Memory: as of `minimise`, for
    at most TOGETHER probabilities at a time, or those of one value of C, and the weights of all.
    """
    c = torch.tensor(grid, dtype=torch.float64, device=rows.x.device)
    weight = rows.x.new_zeros(len(grid), num_classes, rows.x.shape[1])
    nothing = torch.zeros(len(grid), dtype=torch.int64, device=c.device)
    found = Minima(weight, rows.x.new_zeros(len(grid), num_classes), torch.zeros_like(c), nothing, nothing.bool())
    together = max(1, TOGETHER // (num_classes * len(rows.x)))
    known: list[int] = []
    for wave in _waves(grid):
        for i in wave if known else []:
            near, parts = _interpolation(grid, i, known)
            found.weight[i] = torch.tensordot(parts.to(weight), found.weight[near], 1)
            found.bias[i] = parts.to(weight) @ found.bias[near]
        for begin in range(0, len(wave), together):
            some = wave[begin : begin + together]
            parts = minimise(rows, target, c[some], found.weight[some], found.bias[some])
            for whole, part in zip(found, parts, strict=True):
                whole[some] = part
        known = sorted(known + wave)
    return found


def _waves(grid: Sequence[float]) -> list[list[int]]:
    """The places of an ascending grid in the order in which they are solved: every 2^n-th and the last, then halfway between, and so on."""
    last = len(grid) - 1
    step = 1
    while 2 * step <= last and math.log10(grid[-1] / grid[0]) / last * 2 * step <= FIRST_WAVE:
        step *= 2
    waves, seen = [], set()
    while step:
        wave = sorted({*range(0, last + 1, step), last} - seen)
        seen.update(wave)
        waves += [wave] if wave else []
        step //= 2
    return waves


def _interpolation(grid: Sequence[float], i: int, known: Sequence[int]) -> tuple[list[int], Tensor]:
    """The known places around i, ascending, and their weights, which sum to 1: a cubic in log C, or a line where that would be wild."""
    at = bisect(known, i)
    for reach in (2, 1):
        near = list(known[max(0, at - reach) : at + reach])
        logs = [math.log(grid[j] / grid[i]) for j in near]
        parts = [math.prod(b / (b - a) for b in logs if b != a) for a in logs]
        if sum(map(abs, parts)) <= WILD:
            break
    return near, torch.tensor(parts, dtype=torch.float64)
