"""Maps from the gradient of a logit with respect to the input: saliency, SmoothGrad and integrated gradients.

All take any differentiable function from images to logits, in eval mode, and explain one logit of each image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.draws import Draws

Logits = Callable[[Tensor], Tensor]  # float [N, C, H, W] -> [N, K]
# A sum of attributions may miss the difference of two logits by this part of it, or by this much where the difference is below 1.
COMPLETE_TOLERANCE = 0.01
FIRST_STEPS, MOST_STEPS = 32, 1024
# Pictures on the path that go through the network at once.
POINTS_AT_ONCE = 32


def input_gradient(model: Logits, images: Tensor, target: Tensor) -> Tensor:
    """The gradient of each image's own logit, [N, C, H, W]. images: float [N, C, H, W]; target: int64 [N], numbers of outputs."""
    with torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        own = model(x).gather(1, target[:, None]).sum()
        return torch.autograd.grad(own, x)[0]


def saliency(model: Logits, images: Tensor, target: Tensor) -> Tensor:
    """The gradient's absolute value, [N, C, H, W] (Simonyan et al. 2014, arXiv:1312.6034; their map is the largest over channels)."""
    return input_gradient(model, images, target).abs()


def smooth_gradient(
    model: Logits, images: Tensor, target: Tensor, keys: Tensor, seed: int, *, draws: int = 32, noise: float = 0.15
) -> Tensor:
    """The mean gradient over noisy copies of each image, [N, C, H, W] (Smilkov et al. 2017, arXiv:1706.03825, section 2.3).

    keys: int64 [N], identities of the images: an image has the same noise in every set. draws: copies of each. noise: the deviation of the
    added normal noise as a part of the image's range, max - min.
    """
    total = torch.zeros_like(images, dtype=torch.float64)
    for number in range(draws):
        total += input_gradient(model, images + noise_of(images, keys, seed, number, noise), target)
    return (total / draws).to(images.dtype)


def noise_of(images: Tensor, keys: Tensor, seed: int, number: int, noise: float) -> Tensor:
    """The noise of one copy of each image, [N, C, H, W], drawn on the CPU by content, seed and the copy's number."""
    spread = noise * (images.flatten(1).amax(1) - images.flatten(1).amin(1))
    drawn = Draws(seed, keys.cpu()).normal(f"explain/smoothgrad/{number}", *images.shape[1:])
    return spread[:, None, None, None] * drawn.to(images)


class Integrated(NamedTuple):
    """Integrated gradients of N images.

    attributions: [N, C, H, W]. difference: float64 [N], logit of the image minus that of the baseline, which the attributions should sum
    to. error: float64 [N], |sum - difference|. steps: int64 [N], points on the path. complete: bool [N], whether the error is allowed.
    """

    attributions: Tensor
    difference: Tensor
    error: Tensor
    steps: Tensor
    complete: Tensor


def allowed_error(difference: Tensor, tolerance: float = COMPLETE_TOLERANCE) -> Tensor:
    """How far a sum of attributions may be from the difference of the logits: that part of it, at least of a difference of 1."""
    return tolerance * difference.abs().clamp(min=1.0)


def integrated_gradients(
    model: Logits,
    images: Tensor,
    target: Tensor,
    baseline: Tensor,
    *,
    first: int = FIRST_STEPS,
    most: int = MOST_STEPS,
    tolerance: float = COMPLETE_TOLERANCE,
) -> Integrated:
    """Integrated gradients along the straight line from the baseline (Sundararajan et al. 2017, arXiv:1703.01365, eq. 1).

    The integral is a Gauss-Legendre sum of `first` points, doubled for the images whose attributions do not sum to the difference of the
    logits (completeness, their proposition 1) within `allowed_error`, until `most`. baseline: [C, H, W] or what broadcasts to it.
    """
    start = baseline.to(images).expand_as(images)
    with torch.no_grad():
        both = [model(x).gather(1, target[:, None])[:, 0].double() for x in (images, start)]
    difference = both[0] - both[1]
    found = torch.zeros_like(images)
    error, steps = difference.abs(), torch.zeros_like(target)
    left, points = torch.arange(len(images), device=images.device), first
    while len(left):
        for i in left.tolist():
            one = slice(i, i + 1)
            found[one] = _path_sum(model, images[one], start[one], target[one], points)
            error[i] = (found[i].double().sum() - difference[i]).abs()
            steps[i] = points
        left = (error > allowed_error(difference, tolerance)).nonzero()[:, 0]
        if 2 * points > most:
            break
        points *= 2
    return Integrated(found, difference, error, steps, error <= allowed_error(difference, tolerance))


def _path_sum(model: Logits, image: Tensor, start: Tensor, target: Tensor, points: int) -> Tensor:
    """(image - start) times the mean gradient at the points of a Gauss-Legendre sum on the line between them, [1, C, H, W]."""
    places, weights = (torch.from_numpy(x).to(image.device) for x in np.polynomial.legendre.leggauss(points))
    total = torch.zeros_like(image, dtype=torch.float64)
    for some, weight in zip(((places + 1) / 2).split(POINTS_AT_ONCE), (weights / 2).split(POINTS_AT_ONCE), strict=True):
        line = start + some.to(image)[:, None, None, None] * (image - start)
        gradient = input_gradient(model, line, target.expand(len(line)))
        total += (gradient.double() * weight[:, None, None, None]).sum(0, keepdim=True)
    return ((image - start).double() * total).to(image.dtype)
