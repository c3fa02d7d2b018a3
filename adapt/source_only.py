"""Source-only: the lower bound. Cross-entropy on the labelled source; no target image is used, not even by BatchNorm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..core.checks import check_share
from ..core.method import AdaptMethod, Domains, Step
from .parts.resampling import source_error

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


class SourceOnly(AdaptMethod):
    """Cross-entropy on the labelled source.

    label_smoothing: Label smoothing of the cross-entropy, from 0 to below 1.
    """

    rows_per_position = 1
    couples_samples = False
    keeps_head = False
    sees_target = False
    resamples = ("source",)

    def __init__(self, classifier: Classifier, chunk: int | None = None, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_share("label_smoothing", label_smoothing)
        self.classifier, self.label_smoothing = classifier, label_smoothing

    def forward(self, batch: Domains, progress: float) -> Step:
        """batch.source.images: [N, C, h, w]; N is this process's share."""
        logits = self.classifier(batch.source.images)
        loss = source_error(self, logits, batch.source.labels, self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.argmax(1) == batch.source.labels).float().mean()
        return Step(loss, {"source_accuracy": accuracy})
