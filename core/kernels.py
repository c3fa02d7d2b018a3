"""The multi-kernel Gaussian and the unbiased squared MMD: DAN trains with it, and the test of two domains measures with it.

On the common ground, so that a loss of adapt/ and a measure of core/evaluate/ compute the same number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numerics import wide

EXPONENTS = (-3, -2, -1, 0, 1)  # s2_u = 2^u m (Long et al. 2015, arXiv:1502.02791; tllib's five kernels)
SMALLEST = 1e-30  # scale: features that are all equal have kernels of 1, not of 0 / 0


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[N, D], [M, D] -> [N, M] in float32 or float64: |x|^2 + |y|^2 - 2 x y, not below 0. Without autocast."""
    with torch.autocast(x.device.type, enabled=False):
        x, y = wide(x), wide(y)
        centre = y.mean(0).detach()  # differences stay, rounding is smaller
        x, y = x - centre, y - centre
        return (x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T).clamp(min=0.0)


def mean_squared_distance(x: Tensor) -> Tensor:
    """The mean of |x_i - x_j|^2 over all pairs i != j of [N, D], detached; no N x N matrix. (tllib has i = j in its mean too.)"""
    x = wide(x.detach())
    return 2 * (x - x.mean(0)).square().sum() / max(1, len(x) - 1)


def gaussian_kernels(squared: Tensor, mean: Tensor, exponents: Sequence[int] = EXPONENTS) -> Tensor:
    """sum over u of exp(-d^2 / (2 * 2^u * mean)), of squared distances of any shape. mean: as of `mean_squared_distance`."""
    scale = mean.clamp(min=SMALLEST)
    return sum(((-squared / (2.0 * 2.0**u * scale)).exp() for u in exponents), torch.zeros_like(squared))


def unbiased_mmd(
    within_source: Tensor, within_target: Tensor, between: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The unbiased squared MMD from kernels [N, N], [M, M] and [N, M] (Gretton et al. 2012, eq. 3), N and M at least 2.

    Pairs i = j don't count. About 0 where both domains are alike, so it is negative half of the time: nothing is added or clipped.
    weights: of images, above 0, [2, N] where N = M: each mean over pairs has the products of both images' weights; None: all 1.
    """
    if weights is not None:
        source, target = weights.to(between)
        pairs = ((within_source, source), (within_target, target))
        weighted = [
            (k * w[:, None] * w).fill_diagonal_(0.0).sum() / (w.sum() ** 2 - w.square().sum()) for k, w in pairs
        ]
        across = (between * source[:, None] * target).sum() / (source.sum() * target.sum())
        return weighted[0] + weighted[1] - 2 * across
    means = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (within_source, within_target)]
    return means[0] + means[1] - 2 * between.mean()


def multi_kernel_mmd(source: Tensor, target: Tensor) -> Tensor:
    """The unbiased squared MMD of features [N, D] and [M, D] with the five kernels, their scale from both domains together."""
    mean = mean_squared_distance(torch.cat([source, target]))
    return unbiased_mmd(
        gaussian_kernels(squared_distances(source, source), mean),
        gaussian_kernels(squared_distances(target, target), mean),
        gaussian_kernels(squared_distances(source, target), mean),
    )
