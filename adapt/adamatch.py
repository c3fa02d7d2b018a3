"""AdaMatch: FixMatch whose threshold follows the confidence on the source, whose pseudo-labels are aligned with the source's class
distribution, and whose source logits lie at random between two normalisations (Berthelot et al. 2021, arXiv:2106.04732).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.checks import check_fraction, check_not_negative, check_share
from ..core.distributed import all_reduce_sum, world
from ..core.draws import Draws
from ..core.method import AdaptMethod, Domains, Step
from ..core.model.domains import SOURCE, TARGET
from ..core.model.norm import frozen_statistics
from ..core.numerics import wide
from .fixmatch import PseudoLabels, consistency, pseudo_metrics
from .parts.resampling import source_error, target_weights

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier

LEAST_MEAN = 1e-6  # added to class distributions before they are divided, as in the authors' code


class AdaMatch(AdaptMethod):
    """Cross-entropy on a weak and a strong view of the source, and on the strong view of target images by pseudo-labels of the weak one.

    As in the authors' code, the source's loss is the mean over its two views, and pseudo-labels are classes, not distributions. BatchNorm's
    running statistics are those of the forward of both domains alone. All means are of the whole batch of all processes.

    threshold: Least probability of a pseudo-label that counts, as a part of the mean confidence on the source, 0 to 1 (tau).
    trade_off: Weight of the loss on the target, 0 or more. 0 is the control: all forwards stay.
    ramp: Whether that weight rises from 0 to its value over the first half of the training, 1/2 - cos(min(pi, 2 pi progress)) / 2 (mu).
    interpolation: Whether a source image's logits are drawn, each on its own, between those of the forward of both domains and those of one
        of the source alone.
    alignment: Whether predictions on the target are multiplied by the ratio of mean predictions, source to target.
    momentum: Share that earlier steps keep in these means, 0 to 1; 0 takes this batch's alone. The authors' code has 0.999 for the source
        and the last 128 batches for the target, over millions of images.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.
    """

    rows_per_position = 4  # one forward of two views of a source image and two of a target image
    couples_samples = True
    takes_chunk = True
    sees_target = True
    uses_pixels = True
    source_views = ("weak", "strong")
    target_views = ("weak", "strong")
    resamples = ("source", "target")
    distributions: Tensor

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        threshold: float = 0.9,
        trade_off: float = 1.0,
        ramp: bool = True,
        interpolation: bool = True,
        alignment: bool = True,
        momentum: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_fraction("threshold", threshold, "0.9 in the paper")
        check_not_negative("trade_off", trade_off, "1 in the paper, and 0 is the control")
        check_fraction("momentum", momentum, "0 takes the batch's means")
        check_share("label_smoothing", label_smoothing)
        self.classifier, self.chunk = classifier, chunk
        self.threshold, self.trade_off, self.ramp = threshold, trade_off, ramp
        self.interpolation, self.alignment, self.momentum = interpolation, alignment, momentum
        self.label_smoothing = label_smoothing
        classes = classifier.head.out_features
        self.register_buffer("distributions", torch.full((2, classes), 1 / classes))  # mean predictions: source, target

    def forward(self, batch: Domains, progress: float) -> Step:
        """batch.source and batch.target with a strong view each in `more`: [N, C, h, w]; N is this process's share."""
        source, target = batch.source, batch.target
        views = torch.stack([source.images, *source.more, target.images, *target.more])
        features = self.classifier.encode(views, self.chunk, (SOURCE, SOURCE, TARGET, TARGET))  # [4, N, D]
        outputs = wide(self.classifier.head(features))
        known, (weak, strong) = outputs.split(2)  # [2, N, K]
        known = self.interpolated(known, views[:2], source.draws)
        pseudo, least = self.labels(known[0].detach(), weak.detach())
        weights = target_weights(self, pseudo.labels)
        loss = consistency(strong if self.trade_off else strong.detach(), pseudo, weights)
        errors = [source_error(self, logits, source.labels, self.label_smoothing) for logits in known]
        weight = self.trade_off * (ramp_up(progress) if self.ramp else 1.0)
        weight = weight.to(loss) if isinstance(weight, Tensor) else weight  # progress is float64 where compiled
        with torch.no_grad():
            metrics = {
                "source_accuracy": (known[0].argmax(1) == source.labels).float().mean(),
                "consistency_loss": loss.detach(),
                "threshold": least,
                **pseudo_metrics(pseudo, weak, strong),
            }
        return Step(sum(errors, start=loss.new_zeros(())) / 2 + weight * loss, metrics)

    def interpolated(self, logits: Tensor, views: Tensor, draws: Draws) -> Tensor:
        """Z = l Z' + (1 - l) Z'' with a uniform l for each logit (section 3.2): Z' of both domains' forward, Z'' of the source's alone.

        logits: Z', [2, N, K]. views: the source's images, [2, N, C, h, w].
        """
        if not self.interpolation:
            return logits
        with frozen_statistics():
            features = self.classifier.encode(views, self.chunk, (SOURCE, SOURCE))
        alone = wide(self.classifier.head(features))
        share = draws.uniform("interpolation", *logits.shape[::2]).transpose(0, 1).to(logits)  # [2, N, K]
        return alone + share * (logits - alone)

    def labels(self, source: Tensor, target: Tensor) -> tuple[PseudoLabels, Tensor]:
        """Pseudo-labels of the target's weak views, and the threshold of this step. source, target: weak logits [N, K], detached."""
        known, guessed = source.softmax(1), target.softmax(1)
        confidence = known.max(1).values.mean()
        means = torch.cat([torch.stack([known.mean(0), guessed.mean(0)]).flatten(), confidence[None]])
        means = all_reduce_sum(means) / world()
        now, least = means[:-1].view(2, -1), self.threshold * means[-1]
        kept = self.distributions
        if self.training:
            kept = self.distributions.lerp(now.to(self.distributions), 1.0 - self.momentum)
            self.keep_after_step(distributions=kept)
        if self.alignment:
            guessed = with_frequencies(guessed, *(kept.to(now) if self.momentum else now))
        probability, labels = guessed.max(1)
        return PseudoLabels(labels, probability >= least), least


def with_frequencies(guessed: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """normalise(p * mean_source / mean_target): predictions [N, K] whose classes are as frequent as in the source (section 3.3)."""
    ratio = (source + LEAST_MEAN) / (target + LEAST_MEAN)
    found = guessed * ratio
    return found / found.sum(1, keepdim=True)


def ramp_up(progress: float | Tensor) -> float | Tensor:
    """mu(t) = 1/2 - cos(min(pi, 2 pi t)) / 2: 0 at the start, 1/2 at a quarter, 1 from the half of the training on."""
    if isinstance(progress, Tensor):
        return 0.5 - torch.cos((2.0 * math.pi * progress).clamp(max=math.pi)) / 2.0
    return 0.5 - math.cos(min(math.pi, 2.0 * math.pi * progress)) / 2.0
