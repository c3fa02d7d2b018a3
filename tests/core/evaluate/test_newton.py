"""The minimum against scipy at a tight tolerance, and properties of the search."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipys
from torch import Tensor

from rootstock.core.evaluate import newton, softmax_model
from rootstock.core.evaluate.newton import Minima, minimise, path_along_C
from rootstock.core.evaluate.softmax_model import Rows, hessian_product, quadratic_model, rotated

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


class Found(NamedTuple):
    """One of several minima, as numbers, and its weight in the features' own coordinates."""

    weight: Tensor
    bias: Tensor
    objective: float
    iterations: int
    converged: bool


def parts(minima: Minima, rows: Rows) -> list[Found]:
    weights = minima.weight @ rows.basis.T
    numbers = zip(*(field.tolist() for field in minima[2:]), strict=True)
    return [Found(w, b, *three) for w, b, three in zip(weights, minima.bias, numbers, strict=True)]


def from_zeros(rows: Rows, y: Tensor, grid: list[float]) -> Minima:
    """All values of C together, each from zeros."""
    k = int(y.max()) + 1
    weight = torch.zeros(len(grid), k, rows.x.shape[1], dtype=torch.float64)
    return minimise(rows, y, torch.tensor(grid, dtype=torch.float64), weight, weight[:, :, 0])


def solve(x: Tensor, y: Tensor, grid: list[float]) -> list[Found]:
    rows = rotated(x)
    return parts(from_zeros(rows, y, grid), rows)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_objective_is_at_its_minimum(name: str) -> None:
    """Nothing that scipy finds, from zeros for moderate C and from our end for all, is lower by more than 1e-6 of it."""
    x, y = PROBLEMS[name]
    for c, found in zip(GRID, solve(x, y, GRID), strict=True):
        weight = found.weight
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
    for c, found in zip(GRID[:3], solve(x, y, GRID[:3]), strict=True):
        weight, bias = found.weight.requires_grad_(), found.bias.clone().requires_grad_()
        value(x, y, c, weight, bias).backward()
        assert weight.grad is not None and bias.grad is not None
        assert float(weight.grad.square().sum()) * c / 2 <= 1e-6 * found.objective
        assert float(bias.grad.abs().max()) <= 1e-3 * math.sqrt(found.objective)


def test_a_start_changes_nothing_but_the_steps() -> None:
    x, y = PROBLEMS["separable"]
    rows, c = rotated(x), torch.tensor([1e3], dtype=torch.float64)
    cold = from_zeros(rows, y, [1e3])
    warm = minimise(rows, y, c, cold.weight, cold.bias)
    assert int(warm.iterations) < int(cold.iterations)
    assert float(warm.objective) == pytest.approx(float(cold.objective), rel=1e-7)
    again = from_zeros(rows, y, [1e3])
    assert torch.equal(again.weight, cold.weight) and torch.equal(again.bias, cold.bias)


@pytest.mark.parametrize("name", ["two classes", "fewer images than numbers"])
def test_values_of_C_together_find_what_each_finds_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one batch; along the path; and on blocks of some rows, in groups of one because no more fit in memory."""
    x, y = PROBLEMS[name]
    rows, k, grid = rotated(x), int(y.max()) + 1, GRID[1:5]
    alone = [float(from_zeros(rows, y, [c]).objective) for c in grid]
    assert from_zeros(rows, y, grid).objective.tolist() == pytest.approx(alone, rel=1e-6)
    path = path_along_C(rows, y, grid, k)
    assert bool(path.converged.all()) and path.objective.tolist() == pytest.approx(alone, rel=1e-6)
    monkeypatch.setattr(newton, "TOGETHER", 1)
    monkeypatch.setattr(softmax_model, "AT_ONCE", 1)
    monkeypatch.setattr(softmax_model, "FEWEST_ROWS", len(x) // 3)
    small = path_along_C(rows, y, grid, k)
    assert bool(small.converged.all()) and small.objective.tolist() == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("grid", [[1.0], [1.0, 2.0], [1e-6, 1.0, 1.0001, 1e5], list(np.logspace(-6, 5, 45))])
def test_the_waves_of_a_path(grid: list[float]) -> None:
    """Each place comes once; a later one lies between known ones, and its start would be exact on a line in log C."""
    waves = newton._waves(grid)
    assert sorted(i for wave in waves for i in wave) == list(range(len(grid)))
    known = waves[0]
    for wave in waves[1:]:
        for i in wave:
            near, weights = newton._interpolation(grid, i, known)
            assert near[0] < i < near[-1] and float(weights.abs().sum()) <= newton.WILD
            line = torch.tensor([3 + 2 * math.log(grid[j]) for j in near], dtype=torch.float64)
            assert float(weights @ line) == pytest.approx(3 + 2 * math.log(grid[i]))
        known = sorted(known + wave)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("c", [1e-3, 1.0, 1e4])
def test_the_model_is_the_hessian_with_the_biases_eliminated(c: float, rough: bool) -> None:
    """Against autograd's dense Hessian, whose biases are eliminated by its pseudo-inverse."""
    x, y = PROBLEMS["separable"]
    rows = rotated(x)
    found = from_zeros(rows, y, [c])
    weight, bias = 0.8 * found.weight, 0.8 * found.bias
    at, size = torch.cat([weight.flatten(), bias.flatten()]), weight.numel()

    def whole(flat: Tensor) -> Tensor:
        return value(rows.x, y, c, flat[:size].view(weight.shape[1:]), flat[size:])

    hessian = torch.autograd.functional.hessian(whole, at)
    slope = torch.autograd.functional.jacobian(whole, at)
    assert isinstance(hessian, Tensor) and isinstance(slope, Tensor)
    coupling = hessian[:size, size:] @ torch.linalg.pinv(hessian[size:, size:], rtol=1e-10, hermitian=True)
    values = torch.tensor([c], dtype=torch.float64)
    model = quadratic_model(rows, y, weight, bias, values, rough=rough)
    rtol, atol = (1e-3, 1e-4) if rough else (1e-6, 1e-6)
    left = coupling @ slope[size:] - slope[:size]
    torch.testing.assert_close(model.value, whole(at)[None], rtol=rtol, atol=atol)
    torch.testing.assert_close(model.left.flatten() / left.norm(), left / left.norm(), rtol=rtol, atol=atol)
    way = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (hessian[:size, :size] - coupling @ hessian[size:, :size]) @ way.flatten()
    turn, shift = hessian_product(rows, y, model, way, values)
    torch.testing.assert_close(turn.flatten() / expected.norm(), expected / expected.norm(), rtol=1e-3, atol=1e-5)
    balanced = hessian[size:, :size] @ way.flatten() + hessian[size:, size:] @ shift.flatten()
    assert float(balanced.norm()) <= 1e-5 * float((hessian[size:, :size] @ way.flatten()).norm())
    least = torch.linalg.eigvalsh(hessian[:size, :size] - coupling @ hessian[size:, :size])[0]
    assert float(least) >= (1 - 1e-6) / c  # what the bounds of the search rest on


def test_the_bounds_of_what_is_left_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A direction that claims to leave no more than `little` leaves no more, against the dense solution."""
    x, y = PROBLEMS["two classes"]
    rows = rotated(x)
    monkeypatch.setattr(newton, "CG_RESIDUAL", 1e-6)
    monkeypatch.setattr(newton, "LAST_RESIDUAL", 1e-6)
    for c in (1e-3, 1e-1, 10.0, 1e3):
        values, weight = torch.tensor([c], dtype=torch.float64), torch.zeros(1, 2, 5, dtype=torch.float64)
        model = quadratic_model(rows, y, weight, weight[:, :, 0], values)
        columns = [
            hessian_product(rows, y, model, unit.view(1, 2, 5), values)[0].flatten() for unit in torch.eye(10).double()
        ]
        left = model.left.flatten()
        gain = float(left @ torch.linalg.solve(torch.stack(columns), left)) / 2 + float(model.gain)
        for more in (1.0 + 1e-4, 1.1, 2.0):
            step = newton._direction(rows, y, model, values, torch.tensor([more * gain], dtype=torch.float64))
            assert bool(step.last) and float(step.gain) <= gain * (1 + 1e-5)
        step = newton._direction(rows, y, model, values, torch.tensor([0.9 * gain], dtype=torch.float64))
        assert not bool(step.last) and float(step.gain) == pytest.approx(gain, rel=1e-4)


def test_a_class_that_is_told_apart_by_far_keeps_its_bias() -> None:
    """Two classes overlap and the third lies far away: its bonds to them are tiny, and its bias needs an equation of its own."""
    x, y = problem(200, 4, 3, 3.0)
    x[:, 0] += 60.0 * (y == 1)
    x = x - x.mean(0)
    for found in solve(x, y, [1e2, 1e5]):
        assert found.converged and found.iterations < 60


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
        found = from_zeros(rows, y, [c])
        value = float(found.objective)
        for _ in range(4):
            found = minimise(rows, y, torch.tensor([c], dtype=torch.float64), found.weight, found.bias)
            assert bool(found.converged) and int(found.iterations) <= 1
            assert float(found.objective) == pytest.approx(value, rel=2e-7)


def test_an_end_of_the_patience_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = PROBLEMS["separable"]
    monkeypatch.setattr(newton, "MAX_STEPS", 2)
    (found,) = solve(x, y, [1e3])
    assert (found.converged, found.iterations) == (False, 2)


def test_degenerate_features() -> None:
    """Equal features: the bias alone, whose minimum is the log of the classes' parts. A single class: nothing to do."""
    y = torch.tensor([0, 1, 1, 1, 2])
    (found,) = solve(torch.zeros(5, 3, dtype=torch.float64), y, [10.0])
    parts = torch.tensor([1, 3, 1]) / 5
    assert found.converged and not found.weight.any()
    torch.testing.assert_close(found.bias.softmax(0).float(), parts)
    (found,) = solve(torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.int64), [10.0])
    assert (found.converged, found.iterations, found.objective) == (True, 0, 0.0)
