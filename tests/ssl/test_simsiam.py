"""SimSiam's loss against a loop and lightly's, its stopped gradient, and the collapse without it."""

from typing import Any

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.train.optim import Optim
from rootstock.ssl.simsiam import SimSiam, negative_cosine
from rootstock.tests.ssl.cases import method, views


def stacks(n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predictions and targets of two views, [2, n, dim] each."""
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = torch.randn(2, 2, n, dim, generator=generator, dtype=torch.float64)
    return predictions.requires_grad_(), targets.requires_grad_()


def slow_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """D(p1, z2) / 2 + D(p2, z1) / 2 image by image."""
    total = torch.zeros((), dtype=torch.float64)
    n = predictions.shape[1]
    for view, other in ((0, 1), (1, 0)):
        for p, z in zip(predictions[view], targets[other], strict=True):
            total = total - (p * z).sum() / p.square().sum().sqrt() / z.square().sum().sqrt() / 2 / n
    return total


def test_the_loss_and_its_gradients_equal_a_loop_and_lightly() -> None:
    predictions, targets = stacks(6, 5)
    ours, slow = negative_cosine(predictions, targets), slow_loss(predictions, targets)
    assert ours.item() == pytest.approx(slow.item(), rel=1e-12)
    lightly = NegativeCosineSimilarity()
    pairs = (predictions[0], targets[1]), (predictions[1], targets[0])
    assert ours.item() == pytest.approx(sum(lightly(p, z).item() for p, z in pairs) / 2, rel=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, (predictions, targets)),
        torch.autograd.grad(slow, (predictions, targets)),
        strict=True,
    ):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_properties_of_the_loss() -> None:
    predictions, targets = stacks(5, 4)
    loss = negative_cosine(predictions, targets)
    torch.testing.assert_close(negative_cosine(3.0 * predictions, 0.1 * targets), loss)
    torch.testing.assert_close(negative_cosine(predictions.flip(0), targets.flip(0)), loss)
    assert negative_cosine(targets.flip(0), targets).item() == pytest.approx(-1.0)
    assert negative_cosine(-targets.flip(0), targets).item() == pytest.approx(1.0)
    low = negative_cosine(predictions.half(), targets.half())
    assert low.dtype == torch.float32 and low.item() == pytest.approx(loss.item(), abs=1e-3)


@pytest.mark.parametrize("stop", [True, False])
def test_the_gradient_reaches_targets_only_without_the_stop(stop: bool) -> None:
    made: SimSiam = method("simsiam", "conv", stop_gradient=stop).double()
    batch = views(made, 6, dtype=torch.float64)
    step = made(batch, 0.0)
    found = torch.autograd.grad(step.loss, list(made.parameters()))
    rows = batch.images.flatten(0, 1)
    projections = made.projector(made.backbone(rows)).unflatten(0, (2, 6))
    predictions = made.predictor(projections.flatten(0, 1)).unflatten(0, (2, 6))
    slow = slow_loss(predictions, projections.detach() if stop else projections)
    assert step.loss.item() == pytest.approx(slow.item(), rel=1e-9)
    expected = torch.autograd.grad(slow, list(made.parameters()))
    assert max(g.abs().max() for g in expected) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
    assert not any(metric.requires_grad for metric in step.metrics.values())


def test_without_the_stop_the_representation_collapses() -> None:
    """Section 4.1, figure 2: the loss approaches its minimum, and the normalised outputs lose their spread."""

    def trained(stop: bool) -> tuple[float, float]:
        made = method("simsiam", "conv", projection=[32, 32, 32], prediction=[8, 32], stop_gradient=stop)
        optimizer = torch.optim.SGD(made.parameters(), lr=0.2, momentum=0.9)
        spread = loss = torch.zeros(())
        for step in range(60):
            out = made(views(made, 64, seed=step), 0.0)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            spread, loss = out.metrics["embedding_std"], out.loss.detach()
        return spread.item(), loss.item()

    (spread, loss), (collapsed_spread, collapsed_loss) = trained(True), trained(False)
    assert spread > 0.9 and collapsed_spread < 0.6
    assert collapsed_loss < -0.85 < loss


def test_the_heads_are_the_published_ones() -> None:
    made: SimSiam = method("simsiam", "conv")

    def layers(head: nn.Module) -> list[Any]:
        linear = [
            (m.in_features, m.out_features, m.bias is not None) for m in head.modules() if isinstance(m, nn.Linear)
        ]
        norms = [(m.num_features, m.affine) for m in head.modules() if isinstance(m, nn.BatchNorm1d)]
        return [linear, norms, sum(isinstance(m, nn.ReLU) for m in head.modules())]

    width = made.backbone.feature_dim
    projector = [(width, 12, False), (12, 10, False), (10, 8, False)]
    assert layers(made.projector) == [projector, [(12, True), (10, True), (8, False)], 2]
    assert layers(made.predictor) == [[(8, 4, False), (4, 8, True)], [(4, True)], 1]


@pytest.mark.parametrize("constant", [True, False])
def test_the_predictors_rate_does_not_decay(constant: bool) -> None:
    made: SimSiam = method("simsiam", "conv", constant_prediction_rate=constant)
    optimizer = Optim(name="sgd", lr=0.1, batch_size=4, duration=10).build(made)  # pyright: ignore[reportArgumentType]
    held = {p for group in optimizer.param_groups if group["constant"] for p in group["params"]}
    assert held == (set(made.predictor.parameters()) if constant else set())


@pytest.mark.parametrize(
    ("options", "key"),
    [({"projection": ()}, "method.projection"), ({"prediction": (4, 7)}, "method.prediction.*7.*8")],
)
def test_values_that_make_no_method_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        method("simsiam", "conv", **options)
