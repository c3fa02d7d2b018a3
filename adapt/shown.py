"""What a classifier makes of test images: the features that its head sees, and logits, of one pass over the images. No label is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.evaluate.features import evaluating, extract_taps
from ..core.evaluate.rounds import stores_in_memory
from ..core.images.open import Images
from ..core.model.classifier import Classifier
from ..core.run.directory import Run
from ..core.views.view import Evaluation
from .frozen import ROWS_AT_ONCE, FrozenFeatures


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
        chosen = rows.get(name)
        if frozen is not None:
            known = frozen.features(images, view)  # of the whole set, which is encoded once
            found[name] = _of_features(classifier, known if chosen is None else known[chosen], run)
            continue
        part = images if chosen is None else images.select(chosen)
        make = stores_in_memory(len(part), {"features": torch.float32, "logits": torch.float32})
        taps = extract_taps(
            _Both(classifier),
            part,
            view,
            {"features": 1, "logits": 1},
            make,
            device=run.device,
            workers=run.options["workers"],
        )
        found[name] = ShownTest(taps["features"], taps["logits"])
    return found


def _of_features(classifier: Classifier, known: Tensor, run: Run) -> ShownTest:
    """known: features of the frozen backbone, [M, D]."""
    both = _Both(classifier)
    with evaluating(classifier), torch.inference_mode():
        parts = [both(part.to(run.device)) for part in known.split(ROWS_AT_ONCE)]
    return ShownTest(*(torch.cat([part[name].float().cpu() for part in parts]) for name in ("features", "logits")))


class _Both(nn.Module):
    """Features and logits of the very forward that is exported and tested."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.classifier.features(images)
        return {"features": features, "logits": self.classifier.head(self.classifier.dropout(features))}
