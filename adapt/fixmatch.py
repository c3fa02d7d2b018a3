"""FixMatch for adaptation: the confident prediction for a weakly augmented target image is the label of its strongly augmented view
(Sohn et al. 2020, arXiv:2001.07685).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_fraction, check_not_negative, check_share
from ..core.distributed import all_reduce_sum, world
from ..core.method import AdaptMethod, Domains, Step
from ..core.model.domains import SOURCE, TARGET
from ..core.numerics import wide
from .parts.resampling import source_error, target_weights, weighted
from .parts.transfer import effective_classes

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


class FixMatch(AdaptMethod):
    """Cross-entropy on the source, and on the strong view of the target images whose weak view is predicted with confidence (eq. 4).

    As in tllib, where the labelled images are the source's. Unlike tllib, whose three forwards each normalise by their own batch, source
    and both views of the target are encoded in one forward. Pseudo-labels are those of this forward and carry no gradient. Those of
    exactly the threshold count, as in the authors' code; in tllib they don't.

    threshold: Least probability of a pseudo-label that counts, 0 to 1 (tau): 0.95 in the paper; tllib has 0.9.
    trade_off: Weight of the loss on the target, 0 or more (lambda_u): 1 in the paper. 0 is the control: all forwards stay.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.
    """

    rows_per_position = 3  # one forward of a source image, a weak and a strong view of a target image
    couples_samples = False
    takes_chunk = True
    sees_target = True
    uses_pixels = True
    target_views = ("weak", "strong")
    resamples = ("source", "target")

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        threshold: float = 0.95,
        trade_off: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_fraction("threshold", threshold, "0.95 in the paper, 0.9 in tllib")
        check_not_negative("trade_off", trade_off, "1 in the paper, and 0 is the control")
        check_share("label_smoothing", label_smoothing)
        self.classifier, self.chunk = classifier, chunk
        self.threshold, self.trade_off, self.label_smoothing = threshold, trade_off, label_smoothing

    def forward(self, batch: Domains, progress: float) -> Step:
        """batch.source.images, batch.target.images and the strong view in batch.target.more: [N, C, h, w]; N is this process's share."""
        source, target = batch.source, batch.target
        images = torch.stack([source.images, target.images, *target.more])
        features = self.classifier.encode(images, self.chunk, (SOURCE, TARGET, TARGET))  # [3, N, D]
        logits = wide(self.classifier.head(features))
        known, weak, strong = logits  # [N, K] each
        pseudo = pseudo_labels(weak, self.threshold)
        weights = target_weights(self, pseudo.labels)
        loss = consistency(strong if self.trade_off else strong.detach(), pseudo, weights)
        with torch.no_grad():
            metrics = {
                "source_accuracy": (known.argmax(1) == source.labels).float().mean(),
                "consistency_loss": loss.detach(),
                **pseudo_metrics(pseudo, weak, strong),
            }
        error = source_error(self, known, source.labels, self.label_smoothing)
        return Step(error + self.trade_off * loss, metrics)


class PseudoLabels(NamedTuple):
    """Labels that a model has given to target images, without gradient."""

    labels: Tensor  # int64 [N]
    confident: Tensor  # bool [N]: whether the label counts


def pseudo_labels(logits: Tensor, threshold: float | Tensor) -> PseudoLabels:
    """The likeliest classes; those of probability `threshold` or more count. logits: [N, K]."""
    probability, labels = logits.detach().softmax(1).max(1)
    return PseudoLabels(labels, probability >= threshold)


def consistency(logits: Tensor, pseudo: PseudoLabels, weights: Tensor | None = None) -> Tensor:
    """1 / N sum_n 1(n counts) CE(logits_n, label_n): the divisor is the number of all images, of which few count at first (eq. 4).

    logits: of the strong views, [N, K]. weights: of images, [N], 1 on average over the training; None: all 1.
    """
    errors = pseudo.confident * F.cross_entropy(logits, pseudo.labels, reduction="none")
    return weighted(errors, weights).mean()


def pseudo_metrics(pseudo: PseudoLabels, weak: Tensor, strong: Tensor) -> dict[str, Tensor]:
    """The share of target images whose pseudo-label counts, the share whose strong view agrees, and a sign of collapse.

    weak, strong: logits [N, K] of this process's images.
    """
    mean = all_reduce_sum(weak.detach().softmax(1).mean(0)) / world()
    return {
        "confident": pseudo.confident.float().mean(),
        "agreement": (strong.argmax(1) == pseudo.labels).float().mean(),
        "effective_classes": effective_classes(mean),
    }
