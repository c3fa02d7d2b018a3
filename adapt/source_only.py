"""Source-only: the lower bound. Cross-entropy on the labelled source; the target is not looked at, not even by BatchNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..core.method import AdaptMethod, Pair, Step
from ..core.model.classifier import Classifier
from ..core.numerics import wide


class SourceOnly(AdaptMethod):
    """label_smoothing: of the cross-entropy."""

    rows_per_position = 1
    couples_samples = False
    keeps_head = False
    sees_target = False

    def __init__(self, classifier: Classifier, chunk: int | None = None, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.classifier, self.label_smoothing = classifier, label_smoothing

    def forward(self, batch: Pair, progress: float) -> Step:
        logits = self.classifier(batch.source.images)
        loss = F.cross_entropy(wide(logits), batch.source.labels, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.argmax(1) == batch.source.labels).float().mean()
        return Step(loss, {"source_accuracy": accuracy})
