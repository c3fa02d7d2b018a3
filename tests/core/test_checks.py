"""Checks of config values: each error names the key and a remedy."""

import re

import pytest
import torch
from torch import nn

from rootstock.core.checks import check_count, check_share, sizes_fit
from rootstock.core.errors import UserError


@pytest.mark.parametrize("value", [-0.1, 1.0, 1e300, float("nan")])
def test_a_share_lies_from_0_to_below_1(value: float) -> None:
    check_share("label_smoothing", 0.0)
    check_share("label_smoothing", 0.999)
    with pytest.raises(UserError, match=re.escape("method.label_smoothing: expected 0 or more and less than 1")):
        check_share("label_smoothing", value)


@pytest.mark.parametrize("value", [0, 1001, 10**29])
def test_a_count_has_a_least_and_a_most(value: int) -> None:
    check_count("depth", 1, 1, 1000)
    check_count("depth", 1000, 1, 1000)
    with pytest.raises(UserError, match=rf"method\.depth: expected 1 to 1,000, got {value}; 8 is published$"):
        check_count("depth", value, 1, 1000, "8 is published")


@pytest.mark.parametrize("width", [1 << 45, 1 << 62, 10**29])
def test_a_network_that_fits_in_no_memory_names_the_width(width: int) -> None:
    given = {"name": "x", "hidden": [64, width], "depth": 3, "on": True}
    with (
        pytest.raises(UserError, match=rf"method\.hidden: with {width}, the network needs more memory"),
        sizes_fit("method", given),
    ):
        nn.Linear(width, 128)


def test_other_errors_while_building_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="normal expects"), sizes_fit("method", {"hidden": 64}):
        torch.normal(0.0, -1.0, (2,))
    with pytest.raises(MemoryError), sizes_fit("method", {"name": "x"}):
        raise MemoryError
