"""Insertion and deletion: how the probability of a class follows when the places that a map ranks highest come or go.

Petsiuk, Das & Saenko 2018 (RISE, arXiv:1806.07421, section 4.3). A good map has a large area under the insertion curve and a small one
under the deletion curve; both are compared with the same picture's random order, because the areas of two networks cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from ...core.draws import Draws
from ...core.evaluate.counts import Floats
from ...core.evaluate.statistics import Interval, bootstrap_intervals, cluster_numbers, of_sums
from .gradients import Logits
from .methods import PicturesSeen, at_side

CURVE_STEPS = 32
# The blurred picture that insertion begins from: the deviation of the Gaussian as a part of the side (RISE has 5 of 224 px, after a
# kernel of 11 px, which cuts it; objects stay to be seen there, so twice as much here).
BLUR = 10 / 224


class Curves(NamedTuple):
    """Probabilities float64 [N, CURVE_STEPS + 1] after 0, 1, ... equal parts of the places have come (insertion) or gone (deletion)."""

    insertion: Tensor
    deletion: Tensor

    def areas(self) -> Mapping[str, Floats]:
        """The areas under the curves by the trapezoid rule, [N] each."""
        return {name: np.trapezoid(curve.numpy(), dx=1 / CURVE_STEPS, axis=1) for name, curve in self._asdict().items()}


def curves_of(model: Logits, shown: PicturesSeen, maps: Tensor, seed: int) -> Curves:
    """Both curves of each picture, by its map, [N, h, w], enlarged to the picture.

    Places of equal rank come in an order drawn by the picture's identity. Deleted places take the mean of the training pictures, 0 after
    normalisation, as in RISE; insertion begins from the blurred picture.
    """
    side = shown.images.shape[-1]
    rank = ranks(at_side(maps, side), shown.keys, seed)
    return _both(model, shown, rank)


def random_curves(model: Logits, shown: PicturesSeen, cells: tuple[int, int], seed: int) -> Curves:
    """Those of maps that are drawn at random, of so many rows and columns."""
    drawn = Draws(seed, shown.keys).uniform("explain/random", *cells)
    return curves_of(model, shown, drawn, seed)


def ranks(maps: Tensor, keys: Tensor, seed: int) -> Tensor:
    """The place of each pixel when the highest comes first, int64 [N, H, W]; equal ones are in an order of the picture's own."""
    tie = Draws(seed, keys).uniform("explain/ties", maps[0].numel()).numpy()
    order = np.lexsort((tie, -maps.flatten(1).numpy()), axis=1)
    found = np.empty_like(order)
    np.put_along_axis(found, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return torch.from_numpy(found).view(maps.shape)


def _both(model: Logits, shown: PicturesSeen, rank: Tensor) -> Curves:
    pixels = rank[0].numel()
    start = blurred(shown.images)
    found = list[Tensor]()
    for base, reverse in ((start, False), (torch.zeros_like(shown.images), True)):
        curve = list[Tensor]()
        for step in range(CURVE_STEPS + 1):
            come = (rank < math.ceil(step * pixels / CURVE_STEPS))[:, None].to(shown.images.device)
            mixed = torch.where(come, *((base, shown.images) if reverse else (shown.images, base)))
            with torch.no_grad():
                curve.append(model(mixed).double().softmax(1).gather(1, shown.target[:, None])[:, 0].cpu())
        found.append(torch.stack(curve, 1))
    return Curves(*found)


def blurred(images: Tensor) -> Tensor:
    """The images [N, C, H, W] under a Gaussian, their edges reflected."""
    sigma = max(1.0, BLUR * images.shape[-1])
    radius = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    line = (line / line.sum()).to(images)
    channels = images.shape[1]
    across = line.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    wide = conv2d(pad(images, (radius, radius, 0, 0), mode="reflect"), across, groups=channels)
    return conv2d(pad(wide, (0, 0, radius, radius), mode="reflect"), across.mT, groups=channels)


def mean_intervals(values: Mapping[str, Floats], units: Tensor, seed: int) -> dict[str, Interval]:
    """The mean over pictures of each value [N], with its 95 % interval by the bootstrap over units (`Images.units`), int64 [N]."""
    member, count = cluster_numbers(units.numpy())
    sizes = np.bincount(member)
    found = dict[str, Interval]()
    for name, value in values.items():
        sums = np.stack([np.bincount(member, value), sizes], 1)
        mean = of_sums(sums, lambda s: {"mean": s[:, 0] / s[:, 1]})
        found[name] = bootstrap_intervals(mean, count, seed=seed)["mean"]
    return found
