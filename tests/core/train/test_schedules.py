"""Schedules at their ends and in between, as floats and as the tensors of a compiled method."""

import math

import pytest
import torch

from rootstock.core.train.schedules import cosine, ramp


def test_a_cosine_ends_where_it_should_and_is_half_way_in_the_middle() -> None:
    assert [cosine(0.9, 1.0, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.95, 1.0])
    assert cosine(0.996, 1.0, 0.25) == pytest.approx(1.0 - 0.004 * (math.cos(math.pi / 4) + 1) / 2)
    assert cosine(2.0, 2.0, 0.3) == 2.0


def test_a_ramp_rises_and_stays() -> None:
    assert [ramp(0.04, 0.07, p, 0.2) for p in (0.0, 0.1, 0.2, 0.9)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert ramp(0.04, 0.07, 0.0, 0.0) == 0.07


@pytest.mark.parametrize("p", [0.0, 0.13, 0.5, 1.0])
def test_tensors_give_the_same_numbers(p: float) -> None:
    progress = torch.tensor(p, dtype=torch.float64)
    assert cosine(0.996, 1.0, progress).item() == pytest.approx(cosine(0.996, 1.0, p), rel=1e-12)
    for over in (0.0, 0.3):
        assert ramp(1.0, 3.0, progress, over).item() == pytest.approx(ramp(1.0, 3.0, p, over), rel=1e-12)
