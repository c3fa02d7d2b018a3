"""The minimum against scipy at a tight tolerance, and properties of the search."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipys
from torch import Tensor

from rootstock.core.evaluate import newton
from rootstock.core.evaluate.newton import Minimum, minimise, rotated

GRID = [1e-6, 1e-3, 1.0, 1e2, 1e4, 1e6]


def problem(n: int, dim: int, classes: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Blobs whose directions have very different variances, as features of networks do; every class has images."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    y[:classes] = torch.arange(classes)
    centres = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    x = (centres[y] + spread * noise) * torch.logspace(0, -3, dim, dtype=torch.float64)
    x = x - x.mean(0)
    return x / x.square().mean().sqrt(), y


PROBLEMS = {
    "two classes": problem(200, 5, 2, 2.0),
    "30 classes": problem(150, 5, 30, 0.5),
    "fewer images than numbers": problem(40, 100, 3, 3.0),
    "separable": problem(150, 8, 4, 0.05),
}


def value(x: Tensor, y: Tensor, c: float, weight: Tensor, bias: Tensor) -> Tensor:
    """The plain formula; logits relative to the true class's keep the precision of small losses."""
    logits = x @ weight.T + bias
    others = logits - logits.gather(1, y[:, None])
    others = others.scatter(1, y[:, None], -math.inf)
    return torch.nn.functional.softplus(others.logsumexp(1)).sum() + weight.square().sum() / (2 * c)


def reference(x: Tensor, y: Tensor, c: float, start: tuple[Tensor, Tensor]) -> float:
    """scipy's own second-order method from a start, with gradients by autograd, to the limit of float64."""
    shape = start[0].shape

    def parts(flat: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        whole = torch.from_numpy(flat.copy()).requires_grad_()
        return whole, whole[: shape.numel()].view(shape), whole[shape.numel() :]

    def fun(flat: np.ndarray) -> tuple[float, np.ndarray]:
        whole, weight, bias = parts(flat)
        found = value(x, y, c, weight, bias)
        found.backward()
        assert whole.grad is not None
        return found.item(), whole.grad.numpy()

    flat = torch.cat([start[0].flatten(), start[1]]).numpy()
    options = {"maxiter": 1000, "maxfun": 2000, "ftol": 1e-15, "gtol": 1e-15, "maxcor": 50}
    return float(scipys(fun, flat, jac=True, method="L-BFGS-B", options=options).fun)


def solve(x: Tensor, y: Tensor, grid: list[float]) -> list[tuple[Minimum, Tensor]]:
    """For each C the minimum, from zeros, and its weight in the features' own coordinates."""
    rows, k = rotated(x), int(y.max()) + 1
    start = torch.zeros(k, rows.x.shape[1], dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
    minima = [minimise(rows, y, c, [start]) for c in grid]
    return [(found, found.weight @ rows.basis.T) for found in minima]


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_objective_is_at_its_minimum(name: str) -> None:
    """Nothing that scipy finds, from zeros for moderate C and from our end for all, is lower by more than 1e-6 of it."""
    x, y = PROBLEMS[name]
    for c, (found, weight) in zip(GRID, solve(x, y, GRID), strict=True):
        assert found.converged and 0 < found.iterations < 40
        own = float(value(x, y, c, weight, found.bias))
        assert own == pytest.approx(found.objective, rel=1e-9)
        assert own <= reference(x, y, c, (weight, found.bias)) * (1 + 1e-6)
        if c <= 1e2:
            other = reference(x, y, c, (torch.zeros_like(weight), torch.zeros_like(found.bias)))
            assert own <= other * (1 + 1e-6)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_bound_of_strong_convexity(name: str) -> None:
    """f - min f <= |gradient|^2 C / 2 where the bias is optimal: a proof without another solver."""
    x, y = PROBLEMS[name]
    for c, (found, weight) in zip(GRID[:3], solve(x, y, GRID[:3]), strict=True):
        weight, bias = weight.requires_grad_(), found.bias.requires_grad_()
        value(x, y, c, weight, bias).backward()
        assert weight.grad is not None and bias.grad is not None
        assert float(weight.grad.square().sum()) * c / 2 <= 1e-6 * found.objective
        assert float(bias.grad.abs().max()) <= 1e-3 * math.sqrt(found.objective)


def test_a_start_changes_nothing_but_the_steps() -> None:
    x, y = PROBLEMS["separable"]
    rows = rotated(x)
    zeros = torch.zeros(4, 8, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    cold = minimise(rows, y, 1e3, [zeros])
    warm = minimise(rows, y, 1e3, [zeros, (cold.weight, cold.bias)])
    assert warm.iterations < cold.iterations and warm.objective == pytest.approx(cold.objective, rel=1e-7)
    again = minimise(rows, y, 1e3, [zeros])
    assert torch.equal(again.weight, cold.weight) and torch.equal(again.bias, cold.bias)


def test_at_the_minimum_rounding_is_not_fought_with() -> None:
    """Where nothing is left to gain, whether a step lowers the objective is chance; half of these took up to 19 further steps once."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(30):
        n, dim, k = (
            int(torch.randint(low, high, (), generator=generator)) for low, high in ((50, 900), (5, 400), (2, 9))
        )
        c = 10 ** float(8 * torch.rand((), generator=generator) - 3)
        x, y = problem(n, dim, k, 1.0, seed)
        rows = rotated(x)
        found = minimise(
            rows, y, c, [(torch.zeros(k, rows.x.shape[1], dtype=torch.float64), torch.zeros(k, dtype=torch.float64))]
        )
        value = found.objective
        for _ in range(4):
            found = minimise(rows, y, c, [(found.weight, found.bias)])
            assert found.converged and found.iterations <= 1 and found.objective == pytest.approx(value, rel=1e-7)


def test_an_end_of_the_patience_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = PROBLEMS["separable"]
    monkeypatch.setattr(newton, "MAX_STEPS", 2)
    ((found, _),) = solve(x, y, [1e3])
    assert (found.converged, found.iterations) == (False, 2)


def test_degenerate_features() -> None:
    """Equal features: the bias alone, whose minimum is the log of the classes' parts. A single class: nothing to do."""
    y = torch.tensor([0, 1, 1, 1, 2])
    ((found, _),) = solve(torch.zeros(5, 3, dtype=torch.float64), y, [10.0])
    parts = torch.tensor([1, 3, 1]) / 5
    assert found.converged and not found.weight.any()
    torch.testing.assert_close(found.bias.softmax(0).float(), parts)
    ((found, _),) = solve(torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.int64), [10.0])
    assert (found.converged, found.iterations, found.objective) == (True, 0, 0.0)
