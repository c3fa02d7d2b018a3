"""Tiny classifiers of four families, in float64, and pictures with edges."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.finetune.explain.methods import PicturesSeen

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
# More tokens, since rollout of few follows the pictures whatever the weights are.
LEARNING_VIT = {"name": "vit_tiny_patch16_224", "args": {**VIT, "patch_size": 4}}
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


class Trained(NamedTuple):
    """A network that has learned something. accuracy: on pictures that it was not trained on, of which twelve are shown."""

    classifier: Classifier
    accuracy: float
    shown: PicturesSeen


def trained(network: dict[str, Any], classes: int, steps: int, rate: float) -> Trained:
    """On noisy digits below `classes`; float32. What is explained are the classes that it predicts."""
    torch.manual_seed(0)
    digits: Any = load_digits(n_class=classes)
    small, labels = torch.tensor(digits.images).float()[:, None] / 8 - 1, torch.tensor(digits.target)
    large = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    images = large + 0.3 * torch.randn(len(large), 1, SIDE, SIDE)
    made = Classifier(create(SIDE, **network), [str(k) for k in range(classes)]).train()
    optimizer = torch.optim.AdamW(made.parameters(), rate)
    for _ in range(steps):
        rows = torch.randint(0, len(images) - 200, (64,))
        optimizer.zero_grad()
        F.cross_entropy(made(images[rows]), labels[rows]).backward()
        optimizer.step()
    made.eval().requires_grad_(False)
    found, few = made(images[-200:]).argmax(1), torch.arange(12)
    seen = PicturesSeen(images[-200:-188], found[:12], few, few, torch.full((3, 1, 1), -1.0))
    return Trained(made, float((found == labels[-200:]).float().mean()), seen)


@pytest.fixture(scope="session")
def trained_networks() -> dict[str, Trained]:
    """As short a training as teaches each of them."""
    return {"resnet": trained(FAMILIES["resnet"], 5, 30, 1e-2), "vit": trained(LEARNING_VIT, 10, 200, 1e-2)}


@pytest.fixture(scope="session")
def target() -> Tensor:
    return torch.tensor([0, 1, 2, 1])
