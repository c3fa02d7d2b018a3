"""A backbone with a linear head: what fine-tuning and adaptation train, export and test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..evaluate.features import extract
from ..evaluate.metrics import classification, cluster_bootstrap
from ..images.open import Images
from ..train import checkpoint
from ..views.view import Evaluation
from .backbone import Backbone, read_description
from .weights import load_strictly

HEAD, CLASSES = "head.safetensors", "classes.json"


class Classifier(nn.Module):
    """float [N, C, H, W] -> logits [N, K]; classes: the K names."""

    def __init__(self, backbone: Backbone, classes: Sequence[str], dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, list(classes)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.feature_dim, len(self.classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.backbone(images)))

    def export(self, run: Path) -> None:
        """Write run/backbone/ and run/classifier/ (backbone + head + class names)."""
        self.backbone.export(run)
        self.backbone.export(run, "classifier")
        checkpoint.write_tensors(run / "classifier" / HEAD, self.head.state_dict())
        checkpoint.write_text(run / "classifier" / CLASSES, json.dumps(self.classes))

    def load_head(self, weights: str) -> None:
        """Take over the head of an exported classifier. Raises UserError if there is none, or of other classes."""
        if weights in ("none", "timm") or weights.endswith(".safetensors"):
            raise UserError(
                f"backbone.weights: {weights} holds no classifier; give the folder of a finetune or adapt run"
            )
        found = Path(read_description(weights)["path"])
        folder = found if (found / HEAD).is_file() else found.parent / "classifier"
        if not (folder / HEAD).is_file():
            raise UserError(
                f"backbone.weights: {weights} holds no classifier/; give the folder of a finetune or adapt run"
            )
        try:
            classes, tensors = json.loads((folder / CLASSES).read_text()), load_file(folder / HEAD)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"backbone.weights: {folder} is damaged ({error}); export the run again") from error
        if classes != self.classes:
            raise UserError(f"backbone.weights: {weights} knows the classes {classes}, the data has {self.classes}")
        load_strictly(self.head, tensors, f"backbone.weights: {folder / HEAD}")


class Scores(NamedTuple):
    """metrics: "TEST/classifier/METRIC" -> fraction. intervals: 95 % by bootstrap over images. details: per class, confusion."""

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    details: dict[str, Any]


def score(
    classifier: nn.Module,
    tests: Mapping[str, Images],
    view: Evaluation,
    classes: Sequence[str],
    device: torch.device,
    seed: int,
    workers: int = 0,
) -> Scores:
    """Test a classifier on labelled sets (labels as indices into `classes`), each image once."""
    scores = Scores({}, {}, {})
    for name, images in tests.items():
        assert images.labels is not None
        predictions = extract(classifier, images, view, device=device, workers=workers).argmax(1)
        add_scores(scores, f"{name}/classifier", images, predictions, classes, seed)
    return scores


def add_scores(
    scores: Scores, key: str, images: Images, predictions: Tensor, classes: Sequence[str], seed: int
) -> None:
    """Add one test's numbers under "TEST/PROTOCOL". Copies and blends of one picture are resampled together."""
    assert images.labels is not None
    found = classification(images.labels, predictions, classes)
    scores.details[key] = {**found, "classes": list(classes)}
    scores.metrics.update({f"{key}/{metric}": found[metric] for metric in ("accuracy", "precision", "recall", "f1")})
    correct = predictions == images.labels
    low, high = cluster_bootstrap(correct, images.keys(), seed=seed)
    if low is not None and high is not None:
        scores.intervals[f"{key}/accuracy"] = [low, high]
