"""A small classifier of digits that was trained for a moment, so that its outputs say something."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from rootstock.core.images.open import open_images
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.views.view import Evaluation
from rootstock.launch.verbs import execute

DIGITS = "sklearn:digits?size=16&classes=3"
DIGITS16 = "sklearn:digits?size=16"
TRAIN, TEST = f"{DIGITS16}#[:300,seed=1]", f"{DIGITS16}#[300:400,seed=1]"
CLASSIFIER: dict[str, Any] = {
    "data": {"train": TRAIN, "test": TEST, "size": 16, "views": "none"},
    "backbone": {"name": "smallconv", "args": {"widths": [32, 64, 64, 128]}},
    "optim": {"name": "adamw", "lr": 3e-3, "batch_size": 50, "duration": 40},
    "run": {"workers": 0, "device": "cpu"},
}


class Trained(NamedTuple):
    """run: its export. train: the pictures that trained it; held_out: others."""

    run: Path
    train: str
    held_out: str


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("digits")
    train, held_out = f"{DIGITS}#[80%:,seed=0]", f"{DIGITS}#[:80%,seed=0]"
    torch.manual_seed(0)
    backbone = create(16, name="resnet10t", stem="small", args={"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]})
    classifier = Classifier(backbone, ["0", "1", "2"])
    images = open_images(train)
    assert images.labels is not None
    view = Evaluation(16, mean=backbone.mean, std=backbone.std)
    inputs = view(torch.stack([images.read(i) for i in range(len(images))]))
    optim = torch.optim.Adam(classifier.parameters(), 1e-2)
    for _ in range(30):
        loss = nn.functional.cross_entropy(classifier(inputs), images.labels)
        optim.zero_grad()
        loss.backward()
        optim.step()
    backbone.seen = {"labelled": images.keys()}
    classifier.eval().export(folder / "run")
    return Trained(folder / "run", train, held_out)


@pytest.fixture(scope="session")
def five(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of labelled pictures of five channels."""
    path = tmp_path_factory.mktemp("five") / "five.npz"
    pictures = np.random.default_rng(0).integers(0, 256, (6, 5, 16, 16), dtype=np.uint8)
    np.savez(path, x=pictures, y=np.arange(6) % 3)
    return f"npz:{path}?layout=NCHW"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fine-tuning of all ten digits."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    execute("finetune", {**CLASSIFIER, "run": {**CLASSIFIER["run"], "dir": str(folder)}}, quiet=True)
    return folder
