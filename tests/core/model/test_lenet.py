"""LeNet: the published shapes, no pooling over the last map, and sizes that it refuses."""

import pytest
import torch
from torch import nn

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create


def test_has_the_published_layers() -> None:
    model = create(32, name="lenet")
    kernels = [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert kernels == [(32, 3, 5, 5), (48, 32, 5, 5)]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.feature_dim) == (2, 48 * 5 * 5)
    assert create(28, name="lenet").feature_dim == 48 * 4 * 4  # the authors' 768
    assert sum(p.numel() for p in model.parameters()) == 32 * (3 * 25 + 1) + 48 * (32 * 25 + 1)


def test_features_know_where_a_thing_is() -> None:
    """A mean over the map would forget it."""
    torch.manual_seed(0)
    model = create(16, name="lenet").eval()
    image = torch.zeros(1, 3, 16, 16)
    image[..., 2:6, 2:6] = 1.0
    with torch.no_grad():
        here, there = model(image)[0], model(image.roll(8, -1))[0]
    assert not torch.allclose(here, there, atol=1e-3)


def test_a_block_is_a_layer() -> None:
    scales = create(32, name="lenet").layer_scales(0.5)
    by_depth = [{scale for name, scale in scales.items() if name.startswith(f"blocks.{i}.")} for i in range(2)]
    assert by_depth == [{0.25}, {0.5}]


@pytest.mark.parametrize(("size", "widths", "least"), [(15, [32, 48], 16), (35, [4, 4, 4], 36), (3, [4], 6)])
def test_too_small_inputs_are_refused_and_the_least_is_not(size: int, widths: list[int], least: int) -> None:
    with pytest.raises(UserError, match=rf"at least {least} px, got {size}"):
        create(size, name="lenet", args={"widths": widths})
    assert create(least, name="lenet", args={"widths": widths}).feature_dim == widths[-1]
    with pytest.raises(UserError, match=rf"at least {least} px"):
        create(least - 1, name="lenet", args={"widths": widths})


@pytest.mark.parametrize("widths", [[], [0, 8], [8, -1]])
def test_widths_of_nothing_are_refused(widths: list[int]) -> None:
    with pytest.raises(UserError, match=r"widths of at least 1, got .*; change one of them"):
        create(16, name="lenet", args={"widths": widths})
