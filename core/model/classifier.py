"""A backbone with a linear head: what fine-tuning and adaptation train, export and test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..files import write_tensors, write_text
from ..formats import current_names
from ..manifest import MANIFEST, guard, write_manifest
from .backbone import Backbone
from .description import DESCRIPTION, SEEN, WEIGHTS, read_description
from .encode import encode
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

    @property
    def feature_dim(self) -> int:
        """Width of the features that the head sees."""
        return self.head.in_features

    def another_head(self) -> nn.Linear:
        """A new head beside `head`, of its kind and size and with initial weights of its own: for methods with two classifiers."""
        return nn.Linear(self.head.in_features, self.head.out_features)

    def encode(self, images: Tensor, chunk: int | None = None) -> Tensor:
        """The features that the head sees: [V, N, C, h, w] -> [V, N, D]. chunk: images that the network takes at once."""
        return encode(self.backbone, images, chunk)

    def export(self, run: Path) -> None:
        """Write run/backbone/ and run/classifier/ (backbone + head + class names)."""
        self.backbone.export(run)
        self.backbone.export(run, "classifier")
        write_tensors(run / "classifier" / HEAD, self.head.state_dict())
        write_text(run / "classifier" / CLASSES, json.dumps(self.classes))
        write_manifest(run / "classifier", (WEIGHTS, SEEN, DESCRIPTION, HEAD, CLASSES))

    def load_head(self, weights: str) -> None:
        """Load the head of an exported classifier. Raises UserError if there is none, or if it has other classes."""
        if weights in ("none", "timm") or weights.endswith(".safetensors"):
            raise UserError(
                f"backbone.weights: {weights} holds no classifier; give the folder of a finetune or adapt run"
            )
        found = Path(read_description(weights)["path"])
        folder = found if (found / HEAD).is_file() else found.parent / "classifier"
        if (folder / MANIFEST).is_file() or (folder / HEAD).is_file():
            guard(folder, (HEAD, CLASSES), "backbone.weights")
        if not (folder / HEAD).is_file():
            raise UserError(
                f"backbone.weights: {weights} holds no classifier/; give the folder of a finetune or adapt run"
            )
        try:
            classes, tensors = json.loads((folder / CLASSES).read_text()), current_names(load_file(folder / HEAD))
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"backbone.weights: {folder} is damaged ({error}); export the run again") from error
        if classes != self.classes:
            raise UserError(
                f"backbone.weights: {weights} has the classes {classes}, the data has {self.classes}; give data of the same classes"
            )
        load_strictly(self.head, tensors, f"backbone.weights: {folder / HEAD}")
