"""Cosines equal numpy's, and are the same to the last bit in any chunk and order."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rootstock.core.errors import UserError
from rootstock.core.evaluate import cosines
from rootstock.core.evaluate.cosines import GRID, cosine_table, near_one, pair_cosines, unit_rows


def noise(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_cosines_are_those_of_float64(scale: float) -> None:
    """Also where the squares of float32 would leave its range."""
    x = noise(40, 33)
    unit = unit_rows(x * scale, "test")
    assert unit.dtype == np.float32 and (np.rint(unit.astype(float) * GRID) == unit.astype(float) * GRID).all()
    wide = x.double().numpy()
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    assert np.abs(cosine_table(unit, unit) - wide @ wide.T).max() < 2e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_near_one_are_the_rows_times_a_power_of_two(dtype: torch.dtype) -> None:
    x = noise(30, 5).to(dtype)
    wide = x.double() if dtype == torch.float64 else x.float()
    found = near_one(x)
    assert bool(((found.abs().amax(1) >= 0.5) & (found.abs().amax(1) < 1)).all())
    assert len((found / wide).unique(dim=1).T) == 1 and set(torch.frexp(found / wide).mantissa.unique().tolist()) == {
        0.5
    }
    assert torch.equal(normalize(found, dim=1), normalize(wide, dim=1))
    for n, d in ((0, 5), (2, 0), (2, 3)):
        assert torch.equal(near_one(torch.zeros(n, d, dtype=dtype)), torch.zeros(n, d).to(found))
    info = torch.finfo(dtype)
    ends = near_one(torch.tensor([[info.max], [info.tiny], [info.smallest_normal * 4]], dtype=dtype))
    assert bool(((ends >= 0.5) & (ends < 1)).all())


def test_cosines_are_equal_in_any_chunk_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = unit_rows(noise(70, 129), "test")
    whole = cosine_table(unit, unit)
    order = np.random.default_rng(0).permutation(70)
    assert (whole == whole.T).all()
    assert (cosine_table(unit[order], unit)[np.argsort(order)] == whole).all()
    assert (cosine_table(unit[:, ::-1].copy(), unit[:, ::-1].copy()) == whole).all()
    first, second = (one.ravel() for one in np.indices((70, 70)))
    assert (pair_cosines(unit, unit, first, second) == whole.ravel()).all()
    monkeypatch.setattr(cosines, "_NUMBERS", 129 * 3)
    assert (unit_rows(noise(70, 129), "test") == unit).all()
    assert (cosine_table(unit, unit) == whole).all() and (cosine_table(unit[5:6], unit)[0] == whole[5]).all()
    assert (pair_cosines(unit, unit, first, second) == whole.ravel()).all()


def test_rows_of_zeros_and_half_precision_and_what_is_not_finite() -> None:
    x = noise(5, 4).half()
    x[2] = 0
    unit = unit_rows(x, "test")
    assert not unit[2].any() and not cosine_table(unit, unit)[2].any()
    assert unit_rows(x[:0], "test").shape == (0, 4)
    x[1, 0] = torch.nan
    with pytest.raises(UserError, match="1 of 5 test features are not finite"):
        unit_rows(x, "test")
    with pytest.raises(ValueError, match="must be"):
        unit_rows(noise(5, 4)[None], "test")
