"""The multi-kernel Gaussian and the unbiased MMD, against loops and the properties that other estimators lack."""

import math

import pytest
import torch
from torch import Tensor

from rootstock.core.kernels import (
    EXPONENTS,
    gaussian_kernels,
    mean_squared_distance,
    multi_kernel_mmd,
    squared_distances,
)


def draw(n: int, d: int = 4, shift: float = 0.0, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def slow_mmd(source: Tensor, target: Tensor) -> float:
    rows = [*source, *target]
    n, m, whole = len(source), len(target), len(rows)
    distance = [[sum(float(x - y) ** 2 for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    mean = sum(distance[i][j] for i in range(whole) for j in range(whole) if i != j) / (whole * (whole - 1))

    def kernel(i: int, j: int) -> float:
        return sum(math.exp(-distance[i][j] / (2 * 2.0**u * mean)) for u in (-3, -2, -1, 0, 1))

    same_source = sum(kernel(i, j) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    same_target = sum(kernel(n + i, n + j) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same_source + same_target - 2 * sum(kernel(i, n + j) for i in range(n) for j in range(m)) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 9)])
def test_against_loops(n: int, m: int) -> None:
    source, target = draw(n), draw(m, shift=0.7, seed=1)
    assert float(multi_kernel_mmd(source, target)) == pytest.approx(slow_mmd(source, target), rel=1e-9)
    assert EXPONENTS == (-3, -2, -1, 0, 1)


def test_about_0_over_many_draws_of_one_distribution_where_the_biased_estimator_is_not() -> None:
    values, biased = list[float](), list[float]()
    for seed in range(200):
        source, target = draw(32, seed=2 * seed), draw(32, seed=2 * seed + 1)
        values.append(float(multi_kernel_mmd(source, target)))
        mean = mean_squared_distance(torch.cat([source, target]))
        k = [
            gaussian_kernels(squared_distances(a, b), mean)
            for a, b in ((source, source), (target, target), (source, target))
        ]
        biased.append(float(k[0].mean() + k[1].mean() - 2 * k[2].mean()))
    mean, deviation = torch.tensor(values).mean(), torch.tensor(values).std() / math.sqrt(200)
    assert abs(float(mean)) < 3 * float(deviation)
    assert min(values) < 0 < max(values)
    assert sum(biased) / 200 > 10 * abs(float(mean)) and sum(biased) / 200 > 0.05


def test_swapping_the_domains_and_shuffling_rows_changes_nothing() -> None:
    source, target = draw(10), draw(12, shift=1.0, seed=1)
    value = float(multi_kernel_mmd(source, target))
    assert float(multi_kernel_mmd(target, source)) == pytest.approx(value, rel=1e-12)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert float(multi_kernel_mmd(source[order], target)) == pytest.approx(value, rel=1e-12)
    assert float(multi_kernel_mmd(3 * source + 5, 3 * target + 5)) == pytest.approx(value, rel=1e-9)


def test_no_gradient_flows_through_the_scale_of_the_kernels() -> None:
    """At fixed scale the gradient is that of the kernels alone: checked against differences with the scale held."""
    source, target = draw(5, 2).requires_grad_(), draw(5, 2, shift=1.0, seed=1)
    (found,) = torch.autograd.grad(multi_kernel_mmd(source, target), source)
    mean = mean_squared_distance(torch.cat([source, target]))

    def fixed(x: Tensor) -> float:
        k = [gaussian_kernels(squared_distances(a, b), mean) for a, b in ((x, x), (target, target), (x, target))]
        return float((k[0].sum() - k[0].trace()) / 20 + (k[1].sum() - k[1].trace()) / 20 - 2 * k[2].mean())

    step = torch.zeros_like(source)
    step[2, 1] = 1e-5
    with torch.no_grad():
        expected = (fixed(source + step) - fixed(source - step)) / 2e-5
    assert float(found[2, 1]) == pytest.approx(expected, rel=1e-5)
    assert not mean.requires_grad


def test_equal_features_are_no_division_by_0_and_far_ones_lose_no_digits() -> None:
    ones = torch.ones(4, 3)
    assert float(multi_kernel_mmd(ones, ones)) == 0.0
    near, far = draw(6).float(), draw(6).float() + 1000.0
    torch.testing.assert_close(squared_distances(far, far), squared_distances(near, near), rtol=1e-3, atol=1e-2)
