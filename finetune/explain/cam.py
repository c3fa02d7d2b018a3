"""Grad-CAM: an inner map of a network, each channel weighted by the mean gradient of a logit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.model.classifier import Classifier
from .places import Place


def grad_cam(classifier: Classifier, images: Tensor, target: Tensor, place: Place) -> Tensor:
    """relu(sum over channels of (mean gradient over places) x activation), [N, h, w] (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1, 2).

    images: float [N, C, H, W], normalised; target: int64 [N], numbers of outputs. Of tokens those that stand for a place count.
    """
    found, gradient = at_place(classifier, images, target, place)
    return (found * gradient.mean((2, 3), keepdim=True)).sum(1).relu()


def at_place(classifier: Classifier, images: Tensor, target: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """What a layer gives, and the gradient of each image's own logit there: [N, D, h, w] each."""
    kept: list[Tensor] = []

    def leaf(output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # later layers may work in place

    def hook(module: Any, given: Any, output: Tensor) -> Tensor:
        return leaf(output)

    with torch.enable_grad():
        if place.module is None:
            model: Any = classifier.backbone.model
            logits = classifier(model.forward_head(leaf(model.forward_features(images))))
        else:
            handle = place.module.register_forward_hook(hook)
            try:
                logits = classifier(images)
            finally:
                handle.remove()
        gradient = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), kept[0])[0]
    return place.as_map(kept[0].detach()), place.as_map(gradient)
