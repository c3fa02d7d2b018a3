"""Baselines as a recipe builds them: for images of any number of channels, whose pixels are not normalised."""

from __future__ import annotations

import pytest
import torch

from rootstock.core.model.backbone import OWN, create
from rootstock.finetune.baselines.hog import Hog
from rootstock.finetune.baselines.registry import BASELINES


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_baselines_take_any_number_of_channels(channels: int) -> None:
    images = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = {"pixels": images.flatten(1), "hog": Hog(16, channels, cell=4)(images)}
    args = {"pixels": {}, "hog": {"cell": 4}}
    for name, features in expected.items():
        made = create(16, channels, {**OWN, **BASELINES}, name=name, args=args[name])
        assert torch.equal(made(images), features)
        assert made.feature_dim == features.shape[1]
        assert (made.mean, made.std) == ((0.0,) * channels, (1.0,) * channels)
