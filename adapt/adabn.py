"""AdaBN: a trained classifier whose BatchNorm statistics are re-estimated on the target (Li et al. 2016, arXiv:1603.04779)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.errors import UserError
from ..core.model.norm import Mode, PositionBatchNorm, frozen_statistics
from .source_only import SourceOnly

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


class AdaBN(SourceOnly):
    """AdaBN on the classifier of `backbone.weights`; usually run for 0 steps. Target labels are not used.

    Replaces each BatchNorm's mean and variance by those of its inputs over the target (algorithm 1).

    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1; it matters only if steps are trained.

    Raises UserError if the network has no BatchNorm.
    """

    keeps_head = True
    sees_target = True

    def __init__(self, classifier: Classifier, chunk: int | None = None, *, label_smoothing: float = 0.0) -> None:
        super().__init__(classifier, chunk, label_smoothing=label_smoothing)
        if not _layers(classifier):
            raise UserError(
                f"method: adabn needs a backbone with BatchNorm, {classifier.backbone.spec['name']} has none; "
                "use source_only or dann for this one"
            )

    def conclude(self, target: Iterable[Tensor]) -> None:
        """Set every BatchNorm's statistics to those of its inputs over the whole target (section 3.3)."""
        self.eval()
        estimate_statistics(self.classifier, target)
        self.eval()


@torch.no_grad()
def estimate_statistics(classifier: nn.Module, target: Iterable[Tensor]) -> None:
    """Set every BatchNorm's statistics to those of its inputs over the whole target; all else stays, in eval mode.

    target: batches of float [n, C, h, w], each image once. The inputs of deeper layers are normalised by their own batch, as in
    training, so batches should be large and of similar size; with a single batch this is the algorithm of AdaBN's paper exactly.
    """
    classifier.eval()
    layers = _layers(classifier)
    moments = {layer: Moments() for layer in layers}
    hooks = [layer.register_forward_pre_hook(partial(_observe, moments)) for layer in layers]
    try:
        with statistics_by_batch(classifier):
            for images in target:
                classifier(images)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        moments[layer].write(layer)


@contextmanager
def statistics_by_batch(network: nn.Module) -> Iterator[None]:
    """Within it, BatchNorm normalises by the batch, and running statistics stay: for passes over whole sets, which every process makes
    alone, in batches of any size.
    """
    layers = _layers(network)
    training = {layer: layer.training for layer in layers}
    modes: dict[PositionBatchNorm, Mode] = {m: m.mode for m in layers if isinstance(m, PositionBatchNorm)}
    try:
        for layer in layers:
            layer.train()
        for layer in modes:
            layer.mode = "local"
        with frozen_statistics():
            yield
    finally:
        for layer, mode in modes.items():
            layer.mode = mode
        for layer, mode in training.items():
            layer.training = mode


class Moments:
    """Pooled mean and variance of a layer's inputs over batches, in float64 (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """x: [n, C, ...]."""
        count = x.numel() // x.shape[1]
        variance, mean = (t.double() for t in torch.var_mean(x, [0, *range(2, x.ndim)], correction=0))
        total = self.count + count
        shift = mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + variance * count + shift.square() * (self.count * count / total)
        self.mean = self.mean.to(mean) + shift * (count / total)
        self.count = total

    def write(self, layer: _BatchNorm) -> None:
        """Replace the layer's running statistics; its variance is the unbiased one, as in training."""
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(self.mean)
        layer.running_var.copy_(self.squares / max(1, self.count - 1))


def _layers(network: nn.Module) -> list[_BatchNorm]:
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _observe(moments: dict[_BatchNorm, Moments], layer: Any, inputs: tuple[Any, ...]) -> None:
    moments[layer].add(inputs[0])
