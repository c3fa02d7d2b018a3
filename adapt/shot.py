"""SHOT: the head of a trained classifier stays, and the features learn to fit it on the target alone (Liang et al. 2020,
arXiv:2002.08546).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_not_negative
from ..core.config.duration import Duration
from ..core.distributed import gather
from ..core.errors import UserError
from ..core.method import Domains, Overview, Step
from ..core.numerics import wide
from .parts.below_head import check_below_head
from .parts.source_free import SourceFree, whole_index
from .parts.transfer import effective_classes

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier

UNLABELLED = -1  # the pseudo-label of an image before the first refresh
ASSIGNMENTS = 2  # of assignment to centroids: by soft predictions, then by the first round's labels
LEAST = 1e-8  # the authors' guard of an empty class


class SHOT(SourceFree):
    """The head rests. Everything below it minimises the entropy of each target prediction, maximises that of their mean (information
    maximisation, eq. 3) and the agreement with pseudo-labels (eq. 7), which are the nearest centroids of the whole target in evaluation
    mode (eqs. 4 to 6).

    As in the authors' code and unlike the paper, features get a further entry 1 before they are scaled to unit length, and only classes
    that some image is predicted as have a centroid. Unlike the code: the mean prediction is that of the global batch; logarithms have no
    1e-5 inside; a class to which the first round assigns nobody leaves the second, where the code divides 0 by 0. Its first interval
    without pseudo-labels on VisDA is not here, nor its open and partial variants. The source stage is another run (with
    method.label_smoothing=0.1, method.bottleneck=256 and method.head=weightnorm by the authors, whose bottleneck is Linear and BatchNorm,
    on digits with dropout; ours has a ReLU after them, as everywhere here).

    trade_off: Weight of the whole loss, 0 or more; 1 by the authors. 0 is the control: all forwards stay, so that BatchNorm's statistics
        become the target's.
    pseudo_weight: Weight of the cross-entropy on pseudo-labels, 0 or more: 0.3 by the authors, 0.1 on digits. 0 is SHOT-IM.
    refresh_every: How often the pseudo-labels are made anew, as a duration; `ep` are epochs of the target.

    Raises UserError for values out of their range, and where nothing but the head would learn.
    """

    pseudo_labels: Tensor
    changed: Tensor

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        trade_off: float = 1.0,
        pseudo_weight: float = 0.3,
        refresh_every: Duration = Duration(1, "ep"),
    ) -> None:
        super().__init__(classifier, chunk)
        check_not_negative("trade_off", trade_off, "1 is the authors', and 0 is the control")
        check_not_negative("pseudo_weight", pseudo_weight, "0.3 is usual, and 0 is SHOT-IM")
        every = Duration.parse(refresh_every)
        if not every.value:
            raise UserError("method.refresh_every: expected more than 0, got 0; 1ep is usual")
        check_below_head(classifier, "shot", "keeps the head as it is", "start from a run with a bottleneck")
        self.trade_off, self.pseudo_weight = trade_off, pseudo_weight
        self.refresh_every = every if pseudo_weight else None
        self.register_buffer("pseudo_labels", torch.empty(0, dtype=torch.int64))
        self.register_buffer("changed", torch.zeros(()))

    def make_room(self, targets: int) -> None:
        """One pseudo-label for each target image."""
        self.pseudo_labels = self.pseudo_labels.new_full((targets,), UNLABELLED)

    def refresh(self, seen: Overview, progress: float) -> None:
        """New pseudo-labels of the whole target."""
        found = nearest_centroids(seen.features, seen.logits)
        self.changed.copy_((found != self.pseudo_labels[seen.index]).float().mean())
        self.pseudo_labels[seen.index] = found

    def forward(self, batch: Domains, progress: float) -> Step:
        """batch.target.images: [N, C, h, w]; N is this process's share. The loss is that of the whole batch, on every process."""
        logits = gather(self.predict(batch)[1])  # [B, K]
        loss = information_maximisation(logits)
        if self.pseudo_weight:
            labels = self.pseudo_labels[whole_index(batch)]
            errors = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum") / len(logits)
            loss = loss + self.pseudo_weight * errors
        with torch.no_grad():
            predictions = logits.softmax(1)
            metrics = {
                "target_entropy": torch.special.entr(predictions).sum(1).mean(),
                "effective_classes": effective_classes(predictions.mean(0)),
                "pseudo_changed": self.changed.clone(),
            }
        return Step(self.trade_off * loss, metrics)

    def frozen(self, progress: float) -> Iterator[nn.Parameter]:
        """The head, always."""
        yield from self.classifier.head.parameters()


def information_maximisation(logits: Tensor) -> Tensor:
    """mean_i H(p_i) + sum_k pbar_k log pbar_k, p = softmax(logits [B, K]), pbar their mean (eq. 3); at least -log K."""
    logs = logits.log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1).mean()
    mean = logs.logsumexp(0) - math.log(len(logs))  # log pbar: finite also where every p underflows
    return entropy + (mean.exp() * mean).sum()


def nearest_centroids(features: Tensor, logits: Tensor) -> Tensor:
    """The class of the nearest centroid by cosine, int64 [M]. features: [M, D]; logits: [M, K].

    The first centroids are means weighted by predictions (eq. 4), the second ones those of the images assigned to each (eq. 6).
    """
    with torch.autocast(features.device.type, enabled=False):
        features, logits = wide(features), wide(logits)
        classes = logits.shape[1]
        rows = F.normalize(F.pad(features, (0, 1), value=1.0), dim=1)
        predicted = F.one_hot(logits.argmax(1), classes).sum(0) > 0
        weights = labels = logits.softmax(1)
        for _ in range(ASSIGNMENTS):
            totals = weights.sum(0)
            centres = weights.T @ rows / (LEAST + totals[:, None])
            near = rows @ F.normalize(centres, dim=1).T  # [M, K]
            labels = near.masked_fill(~(predicted & (totals > 0.0)), -math.inf).argmax(1)
            weights = F.one_hot(labels, classes).to(rows)
        return labels
