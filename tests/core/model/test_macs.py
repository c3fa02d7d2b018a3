"""Multiply-adds against counts by hand, and published ones."""

import pytest
import timm
import torch
from torch import nn

from rootstock.core.model.backbone import create
from rootstock.core.model.macs import macs_of, parameters_of


def test_a_small_network_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 8 x 8 places, each 8 * 3 * 9
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),  # depthwise: 8 * 9
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    assert macs_of(network, 3, 16) == 64 * (8 * 3 * 9) + 64 * (8 * 9) + 512 * 10
    assert parameters_of(network) == (8 * 27 + 8) + 16 + 72 + 5130


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet18", 1814.1), ("vit_tiny_patch16_224", 1253.7), ("mobilenetv3_small_100", 56.5)]
)
def test_published_networks(name: str, millions: float) -> None:
    """The papers have 1.8 G, 1.3 G and 56 M."""
    network = timm.create_model(name)
    assert macs_of(network, 3, 224) / 1e6 == pytest.approx(millions, abs=0.1)


def test_the_network_stays_as_it_is() -> None:
    backbone = create(32, name="resnet18", stem="small").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert macs_of(backbone, 3, 32) > 4 * macs_of(backbone, 3, 16) * 0.99
    assert backbone.training and all(p.device.type == "cpu" for p in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
