"""Ridge regression against the stacked least-squares problem in numpy, and its invariances."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate.ridge import L2, fit_ridge


def shots(n: int, dim: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, dim, generator=generator)
    return 5 + centres[y] + torch.randn(n, dim, generator=generator), y


def slow(x: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int, l2: float) -> np.ndarray:
    """One class at a time, by numpy's least squares on the features over rows sqrt(l2) I."""
    mean, deviation = x.mean(0), np.sqrt(((x - x.mean(0)) ** 2).mean(0)) + 1e-5
    x, test = ((some - mean) / deviation for some in (x, test))
    x, test = (np.concatenate([some, np.full((len(some), 1), 100.0)], 1) for some in (x, test))
    stacked = np.concatenate([x, math.sqrt(l2) * np.eye(x.shape[1])])
    columns = []
    for k in range(classes):
        aim = np.concatenate([np.where(y == k, 1.0, -1.0), np.zeros(x.shape[1])])
        columns.append(test @ np.linalg.lstsq(stacked, aim, rcond=None)[0])
    return np.stack(columns, 1)


@pytest.mark.parametrize(("n", "dim"), [(3, 20), (20, 20), (21, 20), (22, 20), (60, 5), (1, 4)])
def test_ridge_is_least_squares(n: int, dim: int) -> None:
    """Fewer and more shots than features, one eigendecomposition for three penalties, a class without shots."""
    x, y = shots(n, dim)
    test, _ = shots(30, dim, seed=1)
    grid = (0.5, L2, 2.0**14)
    found = fit_ridge(x, y, 4, grid)
    for l2, scores, classes in zip(grid, found.scores(test), found.predict(test), strict=True):
        expected = slow(x.double().numpy(), y.numpy(), test.double().numpy(), 4, l2)
        np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-7, atol=1e-9)
        assert classes.tolist() == expected.argmax(1).tolist()


def test_the_penalty_is_big_visions_and_scale_and_offset_dont_matter() -> None:
    x, y = shots(12, 6)
    found = fit_ridge(x, y, 3)
    assert found.l2 == (1024.0,) and found.weight.shape == (1, 7, 3)
    moved = fit_ridge(1e3 * x.double() - 7, y, 3)
    torch.testing.assert_close(moved.scores(1e3 * x.double() - 7), found.scores(x), rtol=1e-3, atol=1e-4)
    dead = fit_ridge(torch.cat([x, torch.ones(12, 1)], 1), y, 3)
    torch.testing.assert_close(dead.scores(torch.cat([x, torch.ones(12, 1)], 1)), found.scores(x))


def test_bad_input_is_named() -> None:
    x, y = shots(6, 4)
    for grid in ([], [0.0], [1.0, -1.0], [math.inf], [math.nan]):
        with pytest.raises(UserError, match="finite l2 above 0"):
            fit_ridge(x, y, 3, grid)
    with pytest.raises(UserError, match="at least one training image"):
        fit_ridge(x[:0], y[:0], 3)
    with pytest.raises(UserError, match="is a part of the set unlabelled"):
        fit_ridge(x, y, 2)
    with pytest.raises(UserError, match="not finite"):
        fit_ridge(x * math.nan, y, 3)
    with pytest.raises(ValueError, match="labels"):
        fit_ridge(x, y[:2], 3)
