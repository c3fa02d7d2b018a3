"""A backbone with a head, and a bottleneck between both where one is asked for: what fine-tuning and adaptation train, export and test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..files import write_tensors, write_text
from ..formats import current_names
from ..manifest import MANIFEST, guard, read_manifest, write_manifest
from .backbone import Backbone
from .description import DESCRIPTION, SEEN, WEIGHTS, read_description
from .domains import SOURCE, TARGET, BatchNorms, encode_domains, for_both, give_own, without_source_layers
from .heads import Structure
from .weights import load_strictly

HEAD, CLASSES = "head.safetensors", "classes.json"
UNKNOWN = "unknown"  # the name of the first output beyond the classes, and in tests of the class of all images that are in none of them
STRUCTURE, BOTTLENECK = "classifier.json", "bottleneck.safetensors"


class Classifier(nn.Module):
    """float [N, C, H, W] -> logits [N, K + extra]; classes: the K names.

    structure: the bottleneck, the kind of head and its further outputs, which come after those of the classes. batchnorm: how a batch of
    two domains is normalised (core/model/domains.py); in evaluation all three are the same.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: Sequence[str],
        dropout: float = 0.0,
        structure: Structure = Structure(),
        batchnorm: BatchNorms = "joint",
    ) -> None:
        super().__init__()
        structure.check()
        self.backbone, self.classes = backbone, list(classes)
        self.structure = structure
        self.batchnorm: BatchNorms = batchnorm
        self.dropout = nn.Dropout(dropout)
        self.bottleneck, head = structure.layers(backbone.feature_dim, len(self.classes))
        self.head: Any = head  # a HeadLayer: with in_features, out_features and state_dict
        if batchnorm == "own":
            give_own(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(images)))

    def features(self, images: Tensor) -> Tensor:
        """float [N, C, H, W] -> the features that the head sees, [N, D], of images of one domain.

        images: or features of the backbone, [N, D], or maps of its first layers, where these are frozen and ran once.
        """
        found = images if images.ndim == 2 else self.backbone(images)
        return found if self.bottleneck is None else self.bottleneck(found)

    @property
    def outputs(self) -> list[str]:
        """The names of all outputs: the classes, and after them those of what is in none of them."""
        further = range(self.structure.extra)
        return [*self.classes, *(UNKNOWN if number == 0 else f"{UNKNOWN} {number + 1}" for number in further)]

    @property
    def feature_dim(self) -> int:
        """Width of the features that the head sees."""
        return self.head.in_features

    def another_head(self) -> Any:
        """A new head beside `head`, of its kind and size and with initial weights of its own: for methods with two classifiers."""
        return self.structure.layers(self.backbone.feature_dim, len(self.classes))[1]

    def encode(self, images: Tensor, chunk: int | None = None, domains: Sequence[int] | None = None) -> Tensor:
        """The features that the head sees: [V, N, C, h, w] -> [V, N, D]; rows of two domains are normalised as `batchnorm` says.

        images: or features of the backbone, [V, N, D], or maps of its first layers, where these are frozen and ran once. chunk: images that
        the network takes at once; the bottleneck takes all, so its BatchNorm sees the whole batch. domains: of each of the V rows, SOURCE
        or TARGET; by default the first one is of the source and all others are of the target.
        """
        if domains is None:
            if self.batchnorm == "own" and len(images) == 1:
                raise UserError(
                    "method.batchnorm: own needs to know the domain of images that are encoded alone, which this method does not say; "
                    "use joint or apart"
                )
            domains = (SOURCE, *[TARGET] * (len(images) - 1))
        if images.ndim > 3:
            images = encode_domains(self.backbone, images, self.batchnorm, domains, chunk)
        return self.narrowed(images, domains)

    def narrowed(self, features: Tensor, domains: Sequence[int]) -> Tensor:
        """The bottleneck on features of the backbone: [V, N, D] -> [V, N, D'], or unchanged where there is none."""
        return (
            features if self.bottleneck is None else encode_domains(self.bottleneck, features, self.batchnorm, domains)
        )

    def export(self, run: Path) -> None:
        """Write run/backbone/ and run/classifier/ (backbone, bottleneck, head, structure and class names)."""
        self.backbone.export(run)
        self.backbone.export(run, "classifier")
        folder, names = run / "classifier", [WEIGHTS, SEEN, DESCRIPTION, HEAD, CLASSES, STRUCTURE]
        write_tensors(folder / HEAD, self.head.state_dict())
        if self.bottleneck is not None:
            write_tensors(folder / BOTTLENECK, without_source_layers(self.bottleneck.state_dict()))
            names.append(BOTTLENECK)
        write_text(folder / STRUCTURE, self.structure.as_text())
        write_text(folder / CLASSES, json.dumps(self.classes))
        write_manifest(folder, tuple(names))

    def load_head(self, weights: str) -> None:
        """Load bottleneck and head of an exported classifier. Raises UserError if there is none, or one of other classes or structure."""
        stored = read_head(weights)
        if stored.classes != self.classes:
            raise UserError(
                f"backbone.weights: {weights} has the classes {stored.classes}, the data has {self.classes}; give data of the same classes"
            )
        if stored.structure != self.structure:
            raise UserError(
                f"method: {self.structure.in_words()} contradicts the classifier of {weights} ({stored.structure.in_words()}); "
                "leave these keys of method out"
            )
        remedy = "export the run again"
        load_strictly(self.head, stored.head, f"backbone.weights: {stored.folder / HEAD}", remedy)
        if self.bottleneck is not None:
            whole = for_both(self.bottleneck, stored.bottleneck)
            load_strictly(self.bottleneck, whole, f"backbone.weights: {stored.folder / BOTTLENECK}", remedy)


class StoredHead(NamedTuple):
    """What an exported classifier has above its backbone."""

    folder: Path
    classes: list[str]
    structure: Structure
    head: dict[str, Tensor]
    bottleneck: dict[str, Tensor]  # empty where there is none


def read_head(weights: str) -> StoredHead:
    """Bottleneck and head of the exported classifier of a run; one of an earlier version is linear. Raises UserError if there is none."""
    if weights in ("none", "timm") or weights.endswith(".safetensors"):
        raise UserError(f"backbone.weights: {weights} holds no classifier; give the folder of a finetune or adapt run")
    found = Path(read_description(weights)["path"])
    folder = found if (found / HEAD).is_file() else found.parent / "classifier"
    if (folder / MANIFEST).is_file() or (folder / HEAD).is_file():
        guard(folder, (HEAD, CLASSES), "backbone.weights")
        listed = read_manifest(folder)
        newer = [name for name in (STRUCTURE, BOTTLENECK) if name in (listed or {}) or (folder / name).is_file()]
        if newer and listed is not None:
            guard(folder, newer, "backbone.weights")
    if not (folder / HEAD).is_file():
        raise UserError(f"backbone.weights: {weights} holds no classifier/; give the folder of a finetune or adapt run")
    structure = Structure()
    try:
        if (folder / STRUCTURE).is_file():
            structure = Structure.from_text((folder / STRUCTURE).read_text(), str(folder / STRUCTURE))
        classes, head = json.loads((folder / CLASSES).read_text()), current_names(load_file(folder / HEAD))
        bottleneck = {} if structure.bottleneck is None else current_names(load_file(folder / BOTTLENECK))
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise UserError(f"backbone.weights: {folder} is damaged ({error}); export the run again") from error
    return StoredHead(folder, classes, structure, head, bottleneck)
