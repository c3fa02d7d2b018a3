"""Gradients by layer: the lengths of a plain backward pass on one process; tests/finetune/training/test_regime.py has two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.train.layer_gradients import LayerGradients
from rootstock.finetune.training.losses import CrossEntropy
from rootstock.finetune.training.objective import FineTune

NET: dict[str, Any] = {"name": "cifar_resnet", "args": {"depth": 8, "widths": [4, 4, 6]}}


def test_lengths_are_those_of_the_parameters_gradients() -> None:
    torch.manual_seed(0)
    classifier = Classifier(create(8, **NET), ["a", "b", "c"])
    gradients = LayerGradients(FineTune(classifier, CrossEntropy(torch.ones(3, dtype=torch.int64), 0.0)))
    assert gradients.norms() == {}
    loss = torch.nn.functional.cross_entropy(classifier(torch.randn(5, 3, 8, 8)), torch.tensor([0, 1, 2, 0, 1]))
    loss.backward()
    found = gradients.norms()
    assert list(found) == [f"layer_grad_norm/{place}" for place in ("000", "001", "002", "003", "head")]
    for place, norm in found.items():
        number = place.removeprefix("layer_grad_norm/")
        mine = f"blocks.{int(number)}." if number != "head" else "head."
        parts = [p.grad for name, p in classifier.named_parameters() if mine in name]
        assert parts and norm.item() == pytest.approx(
            torch.cat([p.flatten() for p in parts if p is not None]).norm().item(), rel=1e-6
        )
    whole = torch.stack([p.grad.norm() for p in classifier.parameters() if p.grad is not None]).norm()
    assert torch.stack(list(found.values())).norm().item() == pytest.approx(whole.item(), rel=1e-6)


def test_a_network_without_named_layers_is_refused() -> None:
    torch.manual_seed(0)
    classifier = Classifier(create(8, name="smallconv"), ["a", "b"])
    classifier.backbone.model.group_matcher = None  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    with pytest.raises(
        UserError, match=r"run\.log_gradients: smallconv does not name its layers; leave log_gradients out"
    ):
        LayerGradients(FineTune(classifier, CrossEntropy(torch.ones(2, dtype=torch.int64), 0.0)))
