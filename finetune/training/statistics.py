"""BatchNorm's running statistics of weights that no training had in this combination, from training images."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from ...core.model import norm
from ...core.model.classifier import Classifier
from ...core.run.directory import Run
from ...core.train.fit import Training


@torch.no_grad()
def recompute_statistics(classifier: Classifier, plan: Training, run: Run) -> bool:
    """Give the BatchNorms of a classifier the mean statistics over the batches of the training's last epoch; returns whether it has any.

    Those batches are augmented as in training, and normalised by `backbone.norm` as in training, all else in eval mode. Called on every
    process. Layers that are frozen keep their statistics.
    """
    frozen = {layer for still in classifier.backbone.still for layer in norm.layers(still)}
    layers = [layer for layer in norm.layers(classifier) if layer not in frozen and layer.track_running_stats]
    if not layers:
        return False
    classifier.eval()
    half = run.dtype != torch.float32
    count = min(plan.steps, plan.steps_per_epoch)
    with norm.measured_anew(layers):
        for _, micro in zip(range(count), plan.batches(plan.steps - count), strict=False):
            for raw in micro:
                with torch.autocast(run.device.type, run.dtype) if half else nullcontext():
                    classifier(plan.prepare(raw).images)
                norm.set_aside(layers)
            norm.commit(layers)
    return True
