"""Maps against the network's own forward, and the mean over places against a loop."""

import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create
from rootstock.launch.doctor.trial_steps import SIZE, backbone
from rootstock.ssl.parts.feature_maps import FeatureMaps, to_grid


@pytest.mark.parametrize("name", ["conv", "vit", "resnet18", "convnext_atto", "mobilenetv3_small_050", "swin"])
def test_the_pooled_features_are_the_networks(name: str) -> None:
    torch.manual_seed(0)
    args = {"window_size": 4, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "img_size": 32}
    if name == "swin":
        network = create(32, name="swin_tiny_patch4_window7_224", args=args)
    else:
        network = backbone(name) if name in ("conv", "vit") else create(32, name=name)
    network.eval()
    images = torch.randn(2, 3, network.size, network.size)
    maps = FeatureMaps(network, 2)
    pooled, *found = maps(images)
    torch.testing.assert_close(pooled, network(images), rtol=1e-4, atol=1e-5)
    assert len(found) == 2 and maps.width == pooled.shape[1]
    for tokens, width, (rows, columns) in zip(found, maps.widths, maps.grids, strict=True):
        assert tokens.shape == (2, rows * columns, width)
    alone, *none = FeatureMaps(network, 0)(images)
    assert none == [] and torch.equal(alone, network(images))


def test_the_last_map_has_no_class_token() -> None:
    network = backbone("vit").eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    _, tokens = FeatureMaps(network, 1)(images)
    assert torch.equal(tokens, network.tokens(images)[:, 1:])


def test_what_has_no_such_depths_is_refused() -> None:
    with pytest.raises(UserError, match=r"^method\.depths: smallconv has features at 4 depths, got 5$"):
        FeatureMaps(backbone("conv"), 5)


@pytest.mark.parametrize(("grid", "to"), [((6, 6), (3, 2)), ((5, 7), (2, 3)), ((4, 4), (4, 4)), ((3, 3), (1, 1))])
def test_places_are_averaged_by_area(grid: tuple[int, int], to: tuple[int, int]) -> None:
    tokens = torch.randn(2, grid[0] * grid[1], 5, dtype=torch.float64)
    found = to_grid(tokens, grid, to)
    # By hand: each place is divided into so fine a raster that both grids fit.
    maps = tokens.view(2, *grid, 5).permute(0, 3, 1, 2)
    fine = maps.repeat_interleave(to[0], 2).repeat_interleave(to[1], 3)
    blocks = fine.unflatten(3, (to[1], grid[1])).unflatten(2, (to[0], grid[0])).mean((3, 5))
    torch.testing.assert_close(found, blocks.flatten(2).mT)
