"""Source-only: its loss is the cross-entropy on the source, and nothing of the target enters it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rootstock.adapt.source_only import SourceOnly
from rootstock.core.method import Domains
from rootstock.launch.doctor.equality import CLASSES, classifier, domain_pair


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_its_loss_is_the_cross_entropy_on_the_source(smoothing: float) -> None:
    """One image and one class at a time, from the backbone's features and the head's weights."""
    torch.manual_seed(0)
    method: Any = SourceOnly(classifier(), label_smoothing=smoothing).double().eval()
    torch.nn.init.normal_(method.classifier.head.weight)
    batch = domain_pair(method, 6, 1, torch.float64)
    weights, bias = method.classifier.head.weight.tolist(), method.classifier.head.bias.tolist()
    loss, right = 0.0, 0
    for features, label in zip(
        method.backbone(batch.source.images).tolist(), batch.source.labels.tolist(), strict=True
    ):
        scores = [
            sum(w * f for w, f in zip(row, features, strict=True)) + b for row, b in zip(weights, bias, strict=True)
        ]
        logs = [z - math.log(sum(math.exp(x) for x in scores)) for z in scores]
        loss -= (1.0 - smoothing) * logs[label] / 6 + smoothing * sum(logs) / CLASSES / 6
        right += scores.index(max(scores)) == label
    step = method(batch, 0.5)
    assert step.loss.item() == pytest.approx(loss, rel=1e-10)
    assert step.metrics["source_accuracy"].item() == pytest.approx(right / 6)


def test_the_targets_images_change_neither_loss_nor_gradient() -> None:
    found = []
    for shift in (0.0, math.nan):
        torch.manual_seed(0)
        method = SourceOnly(classifier()).double()
        batch = domain_pair(method, 6, 1, torch.float64)
        target = batch.target._replace(images=batch.target.images + shift)
        loss = method(Domains.of(batch.source, target), 0.5).loss
        found.append((loss, torch.autograd.grad(loss, list(method.parameters()))))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
