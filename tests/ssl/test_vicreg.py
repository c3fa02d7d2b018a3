"""VICReg's three terms against loops, and its loss against lightly's."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import VICRegLoss
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.ssl.vicreg import VICReg, covariance, invariance, variance
from rootstock.tests.ssl.cases import method, views


def pair(n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Some dimensions vary by more than 1, some by less, and some are correlated."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.2, 2.0, dim, dtype=torch.float64)
    first, second = scales * torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    first, second = first + 0.3 * first[:, :1], first + 0.5 * second
    return first.requires_grad_(), second.detach().requires_grad_()


def slow_invariance(first: Tensor, second: Tensor) -> Tensor:
    n, d = first.shape
    return torch.stack([(first[b, i] - second[b, i]) ** 2 for b in range(n) for i in range(d)]).sum() / (n * d)


def slow_covariance_of(z: Tensor, i: int, j: int) -> Tensor:
    n = len(z)
    means = [torch.stack([z[b, k] for b in range(n)]).sum() / n for k in (i, j)]
    return torch.stack([(z[b, i] - means[0]) * (z[b, j] - means[1]) for b in range(n)]).sum() / (n - 1)


def slow_variance(z: Tensor) -> Tensor:
    """Eq. 1 and 2: the mean over dimensions of max(0, 1 - sqrt(Var + 1e-4))."""
    zero = torch.zeros((), dtype=z.dtype)
    short = [torch.maximum(zero, 1 - (slow_covariance_of(z, i, i) + 1e-4).sqrt()) for i in range(z.shape[1])]
    return torch.stack(short).sum() / z.shape[1]


def slow_covariance(z: Tensor) -> Tensor:
    """Eq. 3 and 4: the squares of the covariances of different dimensions, over D."""
    d = z.shape[1]
    squares = [slow_covariance_of(z, i, j) ** 2 for i in range(d) for j in range(d) if i != j]
    return torch.stack(squares).sum() / d


def slow_loss(first: Tensor, second: Tensor, weights: tuple[float, float, float]) -> Tensor:
    return (
        weights[0] * slow_invariance(first, second)
        + weights[1] * (slow_variance(first) + slow_variance(second)) / 2
        + weights[2] * (slow_covariance(first) + slow_covariance(second))
    )


def loss_of(first: Tensor, second: Tensor, weights: tuple[float, float, float]) -> Tensor:
    return (
        weights[0] * invariance(first, second)
        + weights[1] * (variance(first) + variance(second)) / 2
        + weights[2] * (covariance(first) + covariance(second))
    )


@pytest.mark.parametrize("term", ["invariance", "variance", "covariance"])
def test_each_term_and_its_gradient_equal_a_loop(term: str) -> None:
    first, second = pair(7, 4)
    fast, slow, given = {
        "invariance": (invariance, slow_invariance, (first, second)),
        "variance": (variance, slow_variance, (first,)),
        "covariance": (covariance, slow_covariance, (first,)),
    }[term]
    ours, right = fast(*given), slow(*given)
    assert ours.item() == pytest.approx(right.item(), rel=1e-12) and right.item() > 1e-2
    for a, b in zip(torch.autograd.grad(ours, given), torch.autograd.grad(right, given), strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 2.0, 3.0)])
def test_the_whole_equals_lightly(weights: tuple[float, float, float]) -> None:
    first, second = pair(9, 5)
    lightly = VICRegLoss(*weights)(first, second)
    assert loss_of(first, second, weights).item() == pytest.approx(lightly.item(), rel=1e-10)


def test_limits_and_symmetries() -> None:
    """Spread and uncorrelated dimensions cost nothing; identical points cost only the variance term."""
    signs = torch.tensor(
        [[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64
    )
    assert variance(signs).item() == covariance(signs).item() == invariance(signs, signs).item() == 0.0
    constant = torch.full((4, 3), 7.0, dtype=torch.float64)
    assert variance(constant).item() == pytest.approx(1 - math.sqrt(1e-4)) and covariance(constant).item() == 0.0
    # n - 1 below the sum: four numbers of +-1 have variance 4/3.
    assert covariance(signs[:, :1].expand(4, 3)).item() == pytest.approx((4 / 3) ** 2 * 2)
    z = pair(6, 4)[0]
    for term in (variance, covariance):
        torch.testing.assert_close(term(z + torch.arange(4.0)), term(z))
        torch.testing.assert_close(term(-z), term(z))
    torch.testing.assert_close(covariance(2 * z), 16 * covariance(z))
    assert variance(1e3 * z).item() == 0.0


def test_half_precision_is_computed_in_float32() -> None:
    first, second = pair(16, 8)
    weights, exact = (25.0, 25.0, 1.0), loss_of(*pair(16, 8), (25.0, 25.0, 1.0)).item()
    low = loss_of(first.half(), second.half(), weights)
    assert low.dtype == torch.float32 and low.item() == pytest.approx(exact, rel=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of(first.float(), second.float(), weights).item() == pytest.approx(exact, rel=1e-5)


def test_the_step_weighs_the_terms_of_the_projections() -> None:
    made: VICReg = method("vicreg", "conv", invariance=2.0, variance=3.0, covariance=5.0).double()
    batch = views(made, 6, dtype=torch.float64)
    step = made(batch, 0.0)
    first, second = made.projector(made.backbone(batch.images.flatten(0, 1))).unflatten(0, (2, 6))
    assert step.loss.item() == pytest.approx(slow_loss(first, second, (2.0, 3.0, 5.0)).item(), rel=1e-9)
    assert step.metrics["invariance"].item() == pytest.approx(slow_invariance(first, second).item())
    assert step.metrics["covariance"].item() == pytest.approx((slow_covariance(first) + slow_covariance(second)).item())
    assert {"variance", "feature_std", "embedding_rank"} < step.metrics.keys()
    assert not any(metric.requires_grad for metric in step.metrics.values())
    assert method("vicreg", "conv").weights == {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}


def test_the_expander_is_the_published_one() -> None:
    made: VICReg = method("vicreg", "conv")
    kinds = [type(layer).__name__ for layer in made.projector.layers]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    linear = [layer for layer in made.projector.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [12, 10, 8] and all(layer.bias is None for layer in linear)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"invariance": -1.0}, "method.invariance"),
        ({"variance": math.nan}, "method.variance"),
        ({"covariance": -0.5}, "method.covariance"),
        ({"projection": ()}, "method.projection"),
    ],
)
def test_values_that_make_no_loss_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        method("vicreg", "conv", **options)


def test_one_image_has_no_variance() -> None:
    made = method("vicreg", "vit")
    with pytest.raises(UserError, match=r"optim\.batch_size.*2 images"):
        made(views(made, 1), 0.0)
