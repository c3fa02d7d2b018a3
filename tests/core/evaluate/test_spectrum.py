"""The label-free measures against their formulas written out, and on features with a known result."""

import math

import pytest
import torch
from torch import Tensor

from rootstock.core.evaluate.spectrum import alignment, alpha_req, lidar, rankme, uniformity


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rankme_counts_the_directions_that_are_used() -> None:
    basis = torch.linalg.qr(rows(64, 64))[0]
    for rank in (1, 4, 16):
        assert rankme(basis[:, :rank] @ torch.eye(rank, 32, dtype=torch.float64)) == pytest.approx(rank, rel=1e-3)
    singular = torch.linalg.svdvals(rows(50, 8)).tolist()
    shares = [value / sum(singular) + 1e-7 for value in singular]
    assert rankme(rows(50, 8)) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_finds_the_exponent(alpha: float) -> None:
    """Features whose covariance has the eigenvalues i^-alpha, exactly: orthonormal columns without mean, scaled."""
    n, dim = 400, 120
    x = rows(n, dim)
    basis = torch.linalg.qr(x - x.mean(0))[0]
    scale = torch.arange(1, dim + 1, dtype=torch.float64) ** (-alpha / 2)
    assert alpha_req(basis * scale + 3.0) == pytest.approx(alpha, abs=1e-6)
    assert math.isnan(alpha_req(rows(100, 4)))


def slow_lidar(x: Tensor, delta: float) -> float:
    """Class by class, with the inverse square root of the covariance."""
    n, q, dim = x.shape
    centres = [x[i].mean(0) for i in range(n)]
    grand = sum(centres, torch.zeros(dim, dtype=x.dtype)) / n
    outer, inner = torch.zeros(dim, dim, dtype=x.dtype), torch.zeros(dim, dim, dtype=x.dtype)
    for i in range(n):
        outer += torch.outer(centres[i] - grand, centres[i] - grand) / (n - 1)
        for j in range(q):
            inner += torch.outer(x[i, j] - centres[i], x[i, j] - centres[i]) / (n * (q - 1))
    values, vectors = torch.linalg.eigh(inner + delta * torch.eye(dim, dtype=x.dtype))
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ outer @ root).clamp(min=0).tolist()
    shares = [value / sum(eigenvalues) + 1e-7 for value in eigenvalues]
    return math.exp(-sum(p * math.log(p) for p in shares))


def test_lidar_equals_the_definition() -> None:
    x = rows(20, 1, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.1]) + 0.3 * rows(20, 4, 6, seed=1)
    for delta in (1e-4, 0.1):
        assert lidar(x, delta) == pytest.approx(slow_lidar(x, delta), rel=1e-9)


def test_lidar_ignores_directions_that_only_augmentation_moves() -> None:
    told_apart = torch.cat([rows(64, 1, 3).expand(-1, 4, -1), torch.zeros(64, 4, 5)], 2)
    noise = torch.cat([torch.zeros(64, 4, 3), 5.0 * rows(64, 4, 5, seed=2)], 2)
    assert lidar(told_apart + noise + 0.01 * rows(64, 4, 8, seed=3)) < 3.1 < rankme((told_apart + noise)[:, 0])


def test_uniformity_and_alignment_are_means_over_pairs() -> None:
    x = rows(7, 3)
    unit = x / x.norm(dim=1, keepdim=True)
    pairs = [float((unit[i] - unit[j]).square().sum()) for i in range(7) for j in range(i)]
    assert uniformity(x) == pytest.approx(math.log(sum(math.exp(-2 * d) for d in pairs) / len(pairs)))
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-9)
    views = rows(4, 3, 5)
    u = views / views.norm(dim=2, keepdim=True)
    distances = [float((u[n, i] - u[n, j]).square().sum()) for n in range(4) for i in range(3) for j in range(i)]
    assert alignment(views) == pytest.approx(sum(distances) / len(distances))
    assert alignment(views[:, :1].expand(-1, 3, -1) * 2.0) == pytest.approx(0.0, abs=1e-9)
