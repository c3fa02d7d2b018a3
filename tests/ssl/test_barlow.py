"""Barlow Twins' cross-correlation and loss against loops and lightly's."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.ssl.barlow import BarlowTwins, cross_correlation, off_diagonal, on_diagonal
from rootstock.tests.ssl.cases import method, views


def pair(n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    second = 0.5 * first + second  # otherwise all correlations would be small
    return first.requires_grad_(), second.detach().requires_grad_()


def loss_of(first: Tensor, second: Tensor, lambd: float) -> Tensor:
    correlation = cross_correlation(first, second)
    return on_diagonal(correlation) + lambd * off_diagonal(correlation)


def slow_loss(first: Tensor, second: Tensor, lambd: float) -> Tensor:
    """Eq. 1 with C of eq. 2, entry by entry, of embeddings standardised over the batch (biased variance, plus 1e-5)."""
    n, d = first.shape

    def column(z: Tensor, i: int) -> list[Tensor]:
        mean = torch.stack([z[b, i] for b in range(n)]).sum() / n
        variance = torch.stack([(z[b, i] - mean) ** 2 for b in range(n)]).sum() / n
        return [(z[b, i] - mean) / (variance + 1e-5).sqrt() for b in range(n)]

    columns = [[column(z, i) for i in range(d)] for z in (first, second)]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(d):
        for j in range(d):
            c = torch.stack([a * b for a, b in zip(columns[0][i], columns[1][j], strict=True)]).sum() / n
            total = total + ((1 - c) ** 2 if i == j else lambd * c**2)
    return total


@pytest.mark.parametrize("lambd", [0.0051, 0.5])
def test_the_loss_and_its_gradients_equal_a_loop_and_lightly(lambd: float) -> None:
    first, second = pair(7, 4)
    ours, slow = loss_of(first, second, lambd), slow_loss(first, second, lambd)
    assert ours.item() == pytest.approx(slow.item(), rel=1e-12)
    assert ours.item() == pytest.approx(BarlowTwinsLoss(lambd)(first, second).item(), rel=1e-10)
    for a, b in zip(
        torch.autograd.grad(ours, (first, second)), torch.autograd.grad(slow, (first, second)), strict=True
    ):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_off_diagonal_leaves_out_the_diagonal_alone() -> None:
    matrix = torch.arange(9.0).view(3, 3)
    assert off_diagonal(matrix).item() == 1 + 4 + 9 + 25 + 36 + 49
    assert off_diagonal(torch.eye(5)).item() == 0.0


def test_limits_and_symmetries_of_the_loss() -> None:
    """Equal views with uncorrelated dimensions are the optimum; equal dimensions are the most redundant case."""
    signs = torch.tensor(
        [[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64
    )
    assert loss_of(signs, signs, 0.5).item() == pytest.approx(0.0, abs=1e-9)
    alike = signs[:, :1].expand(4, 3)
    assert loss_of(alike, alike, 0.5).item() == pytest.approx(0.5 * 3 * 2, rel=1e-4)
    assert loss_of(signs, -signs, 0.5).item() == pytest.approx(3 * 2**2, rel=1e-4)
    constant = torch.ones(4, 3, dtype=torch.float64)
    assert loss_of(constant, constant, 0.5).item() == pytest.approx(3.0)
    first, second = pair(6, 4)
    torch.testing.assert_close(loss_of(second, first, 0.1), loss_of(first, second, 0.1))
    torch.testing.assert_close(
        loss_of(3 * first - 5, second + 2, 0.1), loss_of(first, second, 0.1), rtol=1e-4, atol=1e-6
    )


def test_half_precision_is_computed_in_float32() -> None:
    first, second = pair(16, 8)
    low = loss_of(first.half(), second.half(), 0.0051)
    assert low.dtype == torch.float32 and low.item() == pytest.approx(loss_of(first, second, 0.0051).item(), rel=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(first.float(), second.float(), 0.0051)
    assert found.item() == pytest.approx(loss_of(first, second, 0.0051).item(), rel=1e-5)


def test_the_step_is_the_scaled_loss_of_the_projections() -> None:
    made: BarlowTwins = method("barlow", "conv", lambd=0.3, scale_loss=0.5).double()
    batch = views(made, 6, dtype=torch.float64)
    step = made(batch, 0.0)
    first, second = made.projector(made.backbone(batch.images.flatten(0, 1))).unflatten(0, (2, 6))
    assert step.loss.item() == pytest.approx(0.5 * slow_loss(first, second, 0.3).item(), rel=1e-9)
    terms = step.metrics["on_diagonal"] + 0.3 * step.metrics["off_diagonal"]
    assert step.loss.item() == pytest.approx(0.5 * terms.item(), rel=1e-9)
    assert {"feature_std", "embedding_rank"} < step.metrics.keys()
    assert not any(metric.requires_grad for metric in step.metrics.values())
    assert method("barlow", "conv").scale_loss == 0.024 and math.isclose(method("barlow", "conv").lambd, 0.0051)


def test_the_projector_is_the_published_one() -> None:
    made: BarlowTwins = method("barlow", "conv")
    kinds = [type(layer).__name__ for layer in made.projector.layers]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    linear = [layer for layer in made.projector.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [12, 10, 8] and all(layer.bias is None for layer in linear)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"lambd": -0.1}, "method.lambd"),
        ({"lambd": math.nan}, "method.lambd"),
        ({"scale_loss": 0.0}, "method.scale_loss"),
        ({"projection": (8, 0)}, "method.projection"),
    ],
)
def test_values_that_make_no_loss_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        method("barlow", "conv", **options)


def test_one_image_has_no_correlation() -> None:
    made = method("barlow", "vit")
    with pytest.raises(UserError, match=r"optim\.batch_size.*2 images"):
        made(views(made, 1), 0.0)
