"""Signs of health of an adapted classifier: how many classes it predicts, errors by class and domain, BatchNorm's gap.

Plain functions. What reads labels takes them as an argument, so that only an evaluation can call it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .counts import Floats, Ints

ONE_CLASS = 0.99
"""The share of images that a single class must be predicted for, to say that it is predicted for everything."""


class PredictedClasses(NamedTuple):
    """What a classifier predicts on a set without labels."""

    effective: float  # exp(H(mean p)), 1 to K
    classes: int  # K
    largest: float  # the share of images of the class that is predicted most often
    alarm: str | None  # a sentence, where fewer than half of the classes are effective


class LayerStatistics(NamedTuple):
    """Mean and variance of a BatchNorm layer's inputs over one domain, [C] each."""

    mean: Tensor
    variance: Tensor


def count_predicted_classes(logits: Tensor) -> PredictedClasses:
    """The effective number of predicted classes of logits [N, K]: exp of the entropy of the mean softmax.

    Below K / 2 it is an alarm, and also where one class is the prediction of 99 % of the images: a target whose classes are very unbalanced
    can cause the first, hardly the second.
    """
    p = logits.double().softmax(1)
    effective = float(torch.special.entr(p.mean(0)).sum().exp())
    n, k = p.shape
    largest = int(p.argmax(1).bincount(minlength=k).max()) / n
    alarm = None
    if k > 1 and largest >= ONE_CLASS:
        alarm = f"it predicts one class for everything ({100 * largest:.1f} % of the target)"
    elif effective < k / 2:
        alarm = f"of {k} classes it predicts effectively {effective:.1f}, fewer than half"
    return PredictedClasses(effective, k, largest, alarm)


def class_confusions(labels: Ints, predictions: Ints, domains: Ints, num_classes: int) -> Ints:
    """Confusion matrices by domain, int64 [G, K, K]: row = label, column = prediction. labels, predictions, domains: [N]."""
    count = int(domains.max()) + 1 if len(domains) else 0
    cell = (domains * num_classes + labels) * num_classes + predictions
    return np.bincount(cell, minlength=count * num_classes**2).reshape(count, num_classes, num_classes).astype(np.int64)


def class_accuracies(confusions: Ints) -> Floats:
    """Accuracy of each class in each domain, [..., K], of confusion matrices [..., K, K]; NaN for a class without images."""
    support = confusions.sum(-1)
    right = np.diagonal(confusions, axis1=-2, axis2=-1)
    return np.divide(right, support, out=np.full(support.shape, np.nan), where=support > 0)


class BatchNormInputs:
    """Mean and variance of what reaches each BatchNorm layer of a network, over all batches that are shown within `watching`."""

    def __init__(self) -> None:
        self._sums: dict[
            nn.Module, tuple[int, Tensor, Tensor]
        ] = {}  # rows, mean and sum of squared deviations, float64 [C]

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Within it, forward passes of the network count."""
        hooks = [m.register_forward_pre_hook(self._add) for m in network.modules() if isinstance(m, _BatchNorm)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _add(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x: Tensor = inputs[0].detach()
        # By batches, each less its own mean: E[x^2] - E[x]^2 loses its digits.
        variance, mean = torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0)
        n, mean, spread = x.numel() // x.shape[1], mean.double(), variance.double() * (x.numel() // x.shape[1])
        if layer in self._sums:
            before, old, squares = self._sums[layer]
            off, n = mean - old, n + before
            spread = spread + squares + off.square() * (before * (n - before) / n)
            mean = old + off * ((n - before) / n)
        self._sums[layer] = (n, mean, spread)

    def statistics(self) -> list[LayerStatistics]:
        """Of each layer that was reached, in the order of the first forward pass; on the CPU."""
        return [LayerStatistics(mean.cpu(), (spread / n).cpu()) for n, mean, spread in self._sums.values()]


def batchnorm_gap(source: Sequence[LayerStatistics], target: Sequence[LayerStatistics]) -> float:
    """Mean over BatchNorm layers of the root mean square over channels of (mean_s - mean_t) / sigma_s.

    How many of the source's deviations the target's means are off: what AdaBN removes. A channel without deviation on the source doesn't
    count. Raises ValueError for other layers in source than in target, or none.
    """
    if len(source) != len(target) or not source:
        raise ValueError(f"needs the same BatchNorm layers of both domains, got {len(source)} and {len(target)}")
    gaps = []
    for s, t in zip(source, target, strict=True):
        alive = s.variance > 0
        off = (s.mean - t.mean).double()[alive].square() / s.variance.double()[alive]
        gaps.append(float(off.mean().sqrt()) if len(off) else 0.0)
    return float(np.mean(gaps))
