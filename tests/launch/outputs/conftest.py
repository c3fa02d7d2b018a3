"""Runs for the verbs that use a trained network: tiny networks, made once."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure

CONV = {"widths": (4, 4, 6, 8)}
NAMES = [f"{'ab'[i % 2]}/{i}.png" for i in range(7)]


class Runs(NamedTuple):
    """pretrained: a network alone. adapted: a classifier with a bottleneck, an output for unknown images, and a stored temperature."""

    pretrained: Path
    adapted: Path
    pictures: str
    classifier: Classifier


def moved(model: torch.nn.Module, pictures: torch.Tensor) -> None:
    """Give BatchNorms statistics that are no longer the initial ones."""
    torch.manual_seed(1)
    model.train()(pictures)
    model.eval()


def small(size: int = 16, **options: Any) -> Backbone:
    torch.manual_seed(0)
    made = create(size, name="smallconv", args=CONV, **options)
    moved(made, torch.randn(8, 3, size, size))
    return made


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, draw: Callable[[Path, Iterable[str]], Path]) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    pretrained, adapted = folder / "pre", folder / "adapted"
    small().export(pretrained)
    (pretrained / "config.yaml").write_text("verb: pretrain\ndata: {size: 16, crop: 0.8, interpolation: bicubic}\n")
    torch.manual_seed(2)
    classifier = Classifier(small(), ["cat", "dog", "owl"], structure=Structure(bottleneck=5, extra=1))
    moved(classifier, torch.randn(8, 3, 16, 16))
    classifier.export(adapted)
    calibration = {"temperature": 0.25, "fitted_on": "40 held-out source images"}
    (adapted / "result.json").write_text(json.dumps({"task": "adapt", "calibration": calibration}))
    return Runs(pretrained, adapted, f"folder:{draw(folder / 'pictures', NAMES)}", classifier)
