"""Tiny classifiers of four families, in float64, and pictures with edges."""

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
FAMILIES = {
    "resnet": {
        "name": "resnet10t",
        "stem": "small",
        "args": {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24], "stem_width": 8},
    },
    "convnext": {"name": "convnext_atto", "args": {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}},
    "vit": {"name": "vit_tiny_patch16_224", "args": VIT},
    "vit-mean": {"name": "vit_tiny_patch16_224", "args": VIT, "pooling": "mean"},
    "swin": {
        "name": "swin_tiny_patch4_window7_224",
        "args": {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    },
    "smallconv": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}},
}
SIDE = 32


def tiny(family: str) -> Classifier:
    """Random weights, but BatchNorms have the statistics of noise; head and logits are large enough to see differences."""
    torch.manual_seed(0)
    made = Classifier(create(SIDE, **FAMILIES[family]), ["a", "b", "c"])
    with torch.no_grad():
        made.head.weight.normal_(0, 1)
        made.train()(torch.randn(16, 3, SIDE, SIDE))
    return made.eval().requires_grad_(False).double()


@pytest.fixture(scope="session")
def classifiers() -> dict[str, Classifier]:
    return {family: tiny(family) for family in FAMILIES}


@pytest.fixture(scope="session")
def pictures() -> Tensor:
    """float64 [4, 3, 32, 32], normalised: parts of a photograph."""
    whole = torch.tensor(load_sample_images().images[0]).permute(2, 0, 1)
    parts = [
        whole[:, top : top + 256 : 8, left : left + 256 : 8] for top, left in ((0, 0), (60, 90), (120, 300), (10, 350))
    ]
    return torch.stack(parts).double() / 127.5 - 1


@pytest.fixture(scope="session")
def target() -> Tensor:
    return torch.tensor([0, 1, 2, 1])
