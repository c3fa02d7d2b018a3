"""What a classifier makes of test images: the features that its head sees, and logits, of one pass over the images. No label is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.evaluate.features import extract_taps
from ..core.evaluate.rounds import stores_in_memory
from ..core.images.open import Images
from ..core.model.classifier import Classifier
from ..core.run.directory import Run
from ..core.views.view import Evaluation
from .frozen import AsTheyAre, FrozenFeatures, TestedRows


class ShownTest(NamedTuple):
    """Of some images, on the CPU, the same on every process."""

    features: Tensor  # float32 [M, D], as the head sees them
    logits: Tensor  # float32 [M, K]


def show_tests(
    run: Run,
    view: Evaluation,
    frozen: FrozenFeatures | None,
    tests: Mapping[str, Images],
    classifier: Classifier,
    rows: Mapping[str, Tensor] = {},
) -> dict[str, ShownTest]:
    """What the classifier, in evaluation mode, makes of each test. rows: int64 [m] by test, where not all images are shown."""
    found = {}
    for name, images in tests.items():
        part, seen, chosen = images, view, rows.get(name)
        if frozen is not None:
            known = frozen.tested(images, view)  # of the whole set, which is encoded once
            part, seen = (
                known if chosen is None else TestedRows(known.numbers[chosen], images.select(chosen)),
                AsTheyAre(),
            )
        elif chosen is not None:
            part = images.select(chosen)
        make = stores_in_memory(len(part), {"features": torch.float32, "logits": torch.float32})
        ranks = {"features": 1, "logits": 1}
        place: dict[str, Any] = {"device": run.device, "workers": run.options["workers"]}
        taps = extract_taps(_Both(classifier), part, seen, ranks, make, **place)
        found[name] = ShownTest(taps["features"], taps["logits"])
    return found


class _Both(nn.Module):
    """Features and logits of the very forward that is exported and tested."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.classifier.features(images)
        return {"features": features, "logits": self.classifier.head(self.classifier.dropout(features))}
