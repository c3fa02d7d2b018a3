"""Softmax cross-entropy with an L2 penalty for M values of C at once: its value, and its quadratic model at a point.

The biases have no penalty. In the model they are eliminated exactly (a Schur complement), so that what remains depends on the weights
alone and bends by at least the penalty's 1 / C in every direction. From that follows what a point has still to gain at most, without any
estimate.

Arrays lie as [M, K, N], so that all M x K columns of weights meet the features in one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Logits are computed for so many numbers at a time, and for at least so many rows: they stay in the processor's cache.
AT_ONCE, FEWEST_ROWS = 1 << 16, 1024
# The same on an accelerator, where larger products are faster.
ON_ACCELERATOR = 1 << 24
# The biases' block of the Hessian, scaled to a diagonal of 1, gets this much more, so that it can be inverted where float32 rounds to 0.
JITTER = 1e-13


class Rows(NamedTuple):
    """Features in the coordinates in which their squares are uncorrelated, so that the Hessian is nearly diagonal."""

    x: Tensor  # float64 [N, R], R = min(N, D): x = features @ basis
    rough: Tensor  # x in float32
    basis: Tensor  # float64 [D, R], orthonormal columns


class Model(NamedTuple):
    """M objectives at a point each, and the quadratic model there with the biases eliminated."""

    value: Tensor  # float64 [M]: sum of the losses + |weight|^2 / (2 C)
    left: Tensor  # float64 [M, K, R]: minus the gradient for the weights once the biases have made `shift`
    shift: Tensor  # float64 [M, K]: the biases' step where the weights make none
    gain: Tensor  # float64 [M]: what the model expects of that step
    scale: Tensor  # float64 [M, K, R]: the preconditioner, one over the Hessian's diagonal
    inverse: Tensor  # float64 [M, K, K]: of the biases' block of the Hessian, one bias being held
    error: list[Tensor]  # float32 [M, K, n] for each block of rows: probabilities minus one-hot targets

    def only(self, these: Tensor) -> Model:
        """The model of some of the M, by their numbers or a mask."""
        value, left, shift, gain, scale, inverse = (field[these] for field in self[:6])
        return Model(value, left, shift, gain, scale, inverse, [block[these] for block in self.error])


def rotated(x: Tensor) -> Rows:
    """Features float64 [N, D] in new coordinates. The penalty is the same there, and the minimum has no part outside of them."""
    basis = None
    if len(x) < x.shape[1]:
        basis, triangle = torch.linalg.qr(x.T)
        x = triangle.T
    axes = torch.linalg.eigh(x.T @ x).eigenvectors
    x = x @ axes
    return Rows(x, x.float(), axes if basis is None else basis @ axes)


def objective(rows: Rows, target: Tensor, weight: Tensor, bias: Tensor, c: Tensor, *, rough: bool = False) -> Tensor:
    """Sum of cross-entropies + |weight|^2 / (2 c), float64 [M].

    target: int64 [N] in 0..K-1; weight: float64 [M, K, R]; bias: float64 [M, K]; c: float64 [M]. rough: logits in float32.
    """
    value = weight.square().sum((1, 2)) / (2 * c)
    for _, _, losses, _ in _losses(rows, target, weight, bias, rough):
        value += losses.sum((1, 2), dtype=torch.float64)
    return value


def quadratic_model(
    rows: Rows, target: Tensor, weight: Tensor, bias: Tensor, c: Tensor, *, rough: bool = False
) -> Model:
    """The objectives and their models at a point; arguments as of `objective`.

    Memory beyond the weights' own: 12 bytes for each of the M x K x N probabilities (8 where rough).
    """
    m, k, r = weight.shape
    value = weight.square().sum((1, 2)) / (2 * c)
    slope, bonds = bias.new_zeros(m, k), bias.new_zeros(m, k, k)
    errors = []
    for _, own, losses, error in _losses(rows, target, weight, bias, rough):
        value += losses.sum((1, 2), dtype=torch.float64)
        slope += error.sum(2, dtype=torch.float64)
        p = error.float().scatter_add(1, own, torch.ones_like(losses, dtype=torch.float32))
        bonds += p @ p.mT
        errors.append(error)
    inverse = _inverse(bonds)
    shift = -(inverse @ slope[:, :, None])[:, :, 0]
    left, bend, start = -weight / c[:, None, None], torch.zeros_like(weight), 0
    for i, error in enumerate(errors):
        end = start + error.shape[2]
        x, own = (rows.rough if rough else rows.x)[start:end], _own(target[start:end], m)
        moved = _bent(error, shift.to(error)[:, :, None].expand_as(error).clone(), own).add_(error)
        left -= (moved.flatten(0, 1) @ x).view(m, k, r)
        spread = error.float().abs()  # |error| (1 - |error|) is p (1 - p), also of the true class
        spread *= 1 - spread
        bend += (spread.flatten(0, 1) @ rows.rough[start:end].square()).view(m, k, r)
        errors[i], start = error.float(), end
    return Model(value, left, shift, -(slope * shift).sum(1) / 2, 1 / (bend + 1 / c[:, None, None]), inverse, errors)


def hessian_product(rows: Rows, target: Tensor, model: Model, way: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The Hessian times `way`, the biases following at their best: float64 [M, K, R], and their step, float64 [M, K].

    way: float64 [M, K, R]. The products are float32, which is enough for a direction and twice as fast. Memory: 4 bytes for each of the
    M x K x N probabilities.
    """
    m, k, r = way.shape
    flat, seen = way.flatten(0, 1).float(), []
    pull, start = way.new_zeros(m, k), 0
    for error in model.error:
        end = start + error.shape[2]
        along = _bent(error, (flat @ rows.rough[start:end].T).view(m, k, -1), _own(target[start:end], m))
        pull += along.sum(2, dtype=torch.float64)
        seen.append(along)
        start = end
    shift = -(model.inverse @ pull[:, :, None])[:, :, 0]
    turn, start = way / c[:, None, None], 0
    for error, along in zip(model.error, seen, strict=True):
        end = start + error.shape[2]
        both = shift.float()[:, :, None].expand_as(error).clone()
        along += _bent(error, both, _own(target[start:end], m))
        turn += (along.flatten(0, 1) @ rows.rough[start:end]).view(m, k, r)
        start = end
    return turn, shift


def _own(target: Tensor, m: int) -> Tensor:
    """Targets [n] as an index of the true class in [m, K, n]."""
    return target.expand(m, 1, -1)


def _bent(error: Tensor, along: Tensor, own: Tensor) -> Tensor:
    """Each row's own Hessian, diag(p) - p p^T, times logits [M, K, n], in place.

    Logits are taken relative to the true class: where its probability is nearly 1, plain differences would be rounding.
    """
    along -= along.gather(1, own)
    mean = (error * along).sum(1, keepdim=True)
    along -= mean
    along *= error
    return along.scatter_add_(1, own, -mean)


def _losses(
    rows: Rows, target: Tensor, weight: Tensor, bias: Tensor, rough: bool
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Of each block of rows: its first row, the index of the true class, losses [M, 1, n], and probabilities minus one-hot [M, K, n].

    Precise also where a probability is within 1e-16 of 0 or 1.
    """
    m, k, _ = weight.shape
    if m == 0:
        return
    x = rows.rough if rough else rows.x
    flat, offset = weight.flatten(0, 1).to(x), bias.to(x)[:, :, None]
    block = AT_ONCE if x.device.type == "cpu" else ON_ACCELERATOR
    count = max(FEWEST_ROWS, block // (m * k))
    for start in range(0, len(x), count):
        some = x[start : start + count]
        own = _own(target[start : start + count], m)
        logits = (flat @ some.T).view(m, k, -1) + offset
        logits -= logits.gather(1, own)
        most = logits.amax(1, keepdim=True)
        logits -= most
        rest = logits.exp_().scatter_(1, own, 0.0)
        others, true = rest.sum(1, keepdim=True), (-most).exp_()
        total = others + true
        losses = torch.where(most > 0, most + total.log(), torch.log1p(others))
        rest /= total
        yield start, own, losses, rest.scatter_(1, own, -others / total)


def _inverse(bonds: Tensor) -> Tensor:
    """The inverse of the biases' block, float64 [M, K, K], with one bias held at 0, since equal steps of all change nothing.

    bonds: float64 [M, K, K], sums of p_k p_l. The block is the graph Laplacian of these, so no difference of large numbers enters. The held
    bias is that of the class with the strongest bonds: a class that is told apart easily has tiny ones, and keeps its own equation.
    """
    bonds = bonds - torch.diag_embed(bonds.diagonal(dim1=1, dim2=2))
    degree = bonds.sum(2)
    size = degree.clamp(min=torch.finfo(torch.float32).tiny).rsqrt()
    size.scatter_(1, degree.argmax(1, keepdim=True), 0.0)
    block = torch.eye(bonds.shape[1]).to(bonds) * (1 + JITTER) - size[:, :, None] * bonds * size[:, None]
    return size[:, :, None] * torch.cholesky_inverse(torch.linalg.cholesky(block)) * size[:, None]
