"""The demo's network: shapes, size, and that its layers are named for layer-wise rates."""

import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create


def test_maps_images_to_features_and_stays_small() -> None:
    model = create(32, name="smallconv")
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.feature_dim) == (2, 128)
    assert sum(p.numel() for p in model.parameters()) < 150_000


def test_a_convolution_and_its_norm_are_one_layer() -> None:
    scales = create(32, name="smallconv").layer_scales(0.5)
    by_depth = [{scale for name, scale in scales.items() if name.startswith(f"blocks.{i}.")} for i in range(4)]
    assert by_depth == [{0.0625}, {0.125}, {0.25}, {0.5}]


def test_too_small_inputs_are_refused() -> None:
    with pytest.raises(UserError, match="at least 8 px"):
        create(4, name="smallconv")


@pytest.mark.parametrize("widths", [[], [0, 8], [8, -1]])
def test_widths_of_nothing_are_refused(widths: list[int]) -> None:
    with pytest.raises(UserError, match=r"widths of at least 1, got .*; change one of them"):
        create(16, name="smallconv", args={"widths": widths})
