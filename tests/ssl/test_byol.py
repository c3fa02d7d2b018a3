"""BYOL's loss against a loop, the updates of its target network, and the predictor that only the online network has."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.method import Step
from rootstock.core.train.schedules import cosine
from rootstock.ssl.byol import BYOL, byol_loss
from rootstock.tests.ssl.cases import backbone, method, views


def pair(n: int = 5, dim: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 2, n, dim, generator=generator, dtype=torch.float64)
    return first.requires_grad_(), second


def slow_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """|q / |q| - z / |z||^2, one image and one direction at a time (eq. 2), over N."""
    n = predictions.shape[1]
    total = torch.zeros((), dtype=torch.float64)
    for view, other in ((0, 1), (1, 0)):
        for i in range(n):
            q, z = predictions[view, i], targets[other, i]
            total = total + (q / (q @ q).sqrt() - z / (z @ z).sqrt()).square().sum() / n
    return total


def test_the_loss_and_its_gradient_equal_the_loop() -> None:
    predictions, targets = pair()
    ours, slow = byol_loss(predictions, targets), slow_loss(predictions, targets)
    assert ours.item() == pytest.approx(slow.item(), rel=1e-12)
    (a,), (b,) = (torch.autograd.grad(loss, predictions) for loss in (ours, slow))
    assert b.abs().max() > 1e-3
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_loss_lies_between_agreement_and_opposition() -> None:
    predictions, _ = pair()
    assert byol_loss(predictions, predictions.flip(0)).item() == pytest.approx(0.0, abs=1e-12)
    assert byol_loss(predictions, -3.0 * predictions.flip(0)).item() == pytest.approx(8.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert byol_loss(predictions.float(), predictions.float().flip(0)).dtype == torch.float32


def test_forward_puts_the_parts_together() -> None:
    made: BYOL = method("byol", "vit")
    batch = views(made, 6)
    step: Step = made(batch, 0.0)
    rows = batch.images.transpose(0, 1).flatten(0, 1)

    def seen(network: nn.Module, *heads: nn.Module) -> Tensor:
        x = network(rows)
        for head in heads:
            x = head(x)
        return x.unflatten(0, (-1, 2)).transpose(0, 1).double()

    fresh: BYOL = method("byol", "vit")  # the forward above changed running statistics, but no weight
    predictions = seen(fresh.backbone, fresh.projector, fresh.predictor)
    targets = seen(fresh.target_backbone, fresh.target_projector)
    assert step.loss.item() == pytest.approx(slow_loss(predictions, targets).item(), rel=1e-5)
    assert not any(value.requires_grad for value in step.metrics.values())


def test_gradients_reach_the_online_side_alone() -> None:
    made: BYOL = method("byol", "conv")
    made(views(made, 6), 0.0).loss.backward()
    for name, parameter in made.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


def test_the_target_follows_with_the_momentum_of_progress() -> None:
    made: BYOL = method("byol", "conv", momentum=0.9)
    before = [p.clone() for p in made.target_backbone.parameters()]
    with torch.no_grad():
        for p in [*made.backbone.parameters(), *made.projector.parameters()]:
            p += 1.0
    made.after_step(0.5)
    momentum = cosine(0.9, 1.0, 0.5)
    assert momentum == pytest.approx(1 - 0.1 * (math.cos(math.pi / 2) + 1) / 2)
    for old, new in zip(before, made.target_backbone.parameters(), strict=True):
        torch.testing.assert_close(new, old + (1 - momentum), rtol=1e-5, atol=1e-6)
    heads = zip(made.target_projector.parameters(), made.projector.parameters(), strict=True)
    assert all(not a.equal(b) for a, b in heads)
    assert made.backbone is not made.target_backbone


def test_the_heads_are_the_papers() -> None:
    made = BYOL(backbone("conv"), projection=(12, 6), prediction=(10, 6))
    for head, widths in ((made.projector, [(8, 12), (12, 6)]), (made.predictor, [(6, 10), (10, 6)])):
        assert [type(m).__name__ for m in head.layers] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
        linear = [m for m in head.layers if isinstance(m, nn.Linear)]
        assert [(m.in_features, m.out_features) for m in linear] == widths
        assert [m.bias is not None for m in linear] == [False, True]


@pytest.mark.parametrize(
    ("options", "key"),
    [({"momentum": 1.5}, "momentum"), ({"prediction": (10, 5)}, "prediction"), ({"projection": ()}, "projection")],
)
def test_values_that_make_no_method_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{key}"):
        method("byol", "conv", **options)
