"""AFN: the features of both domains grow longer, step by step (Xu et al. 2019, arXiv:1811.07456)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.checks import check_positive, check_share
from ..core.method import Domains
from ..core.numerics import wide
from .parts.below_head import check_below_head
from .parts.resampling import of_each_domain, weighted
from .parts.transfer import Joint, Transfer, Transferred

if TYPE_CHECKING:
    from ..core.draws import Draws
    from ..core.model.classifier import Classifier


def stepwise_norm(features: Tensor, step: float, weights: Tensor | None = None) -> Tensor:
    """The mean of (|f| - (sg|f| + step))^2 over rows of [N, D], sg detached: step^2, and a pull of 2 step / N outward on each.

    weights: of rows, [N], 1 on average over the training; None: all 1.
    """
    lengths = torch.linalg.vector_norm(wide(features), dim=1)
    squares = (lengths - (lengths.detach() + step)).square()
    return weighted(squares, weights).mean()


def length_preserving_dropout(features: Tensor, rate: float, draws: Draws) -> Tensor:
    """Dropout of [N, D] that keeps the expected squared length: what stays is divided by sqrt(1 - rate), not by 1 - rate."""
    kept = draws.bernoulli("afn/dropout", 1.0 - rate, features.shape[1])
    return features * kept.to(features.dtype) / (1.0 - rate) ** 0.5


class AFN(Transfer):
    """Cross-entropy on the source plus stepwise adaptive feature norm (SAFN) on both domains.

    Features that the head sees go through dropout that keeps their length, in training alone, as in the authors' bottleneck. The loss has a
    constant value, 2 step^2 (without weights of images); what moves are the lengths. The authors train the backbone without momentum,
    which is not done here. Their other form, which pulls the mean length to 25 (HAFN), and their entropy term are left out.

    step: What is added to the length of each feature, above 0; 1 in the paper, 0.3 on VisDA (Delta r).
    dropout: Share of features set to 0 in training, from 0 to below 1.
    trade_off: Weight of the norms beside the cross-entropy, 0 or more; 0.05 in the paper, 0.01 in tllib on DomainNet. 0 is the control.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.

    Raises UserError for values outside of these ranges.
    """

    couples_samples = False

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        step: float = 1.0,
        dropout: float = 0.5,
        trade_off: float = 0.05,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(classifier, chunk, trade_off, label_smoothing, "0.05 is the published one")
        check_positive("step", step, "1 is the published one")
        check_share("dropout", dropout)
        if trade_off:
            check_below_head(classifier, "afn")
        self.step, self.dropout = step, dropout

    def seen_by_head(self, features: Tensor, batch: Domains) -> Tensor:
        """Dropout by positions, of each domain its own."""
        if not self.training or self.dropout == 0.0:
            return features
        dropped = zip(features, (batch.source.draws, batch.target.draws), strict=True)
        return torch.stack([length_preserving_dropout(f, self.dropout, draws) for f, draws in dropped])

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """The sum over both domains; watched: the mean length of each domain's features."""
        source, target = joint.features
        lengths = torch.linalg.vector_norm(joint.features.detach(), dim=2).mean(1)
        of_source, of_target = of_each_domain(joint.weights)
        loss = stepwise_norm(source, self.step, of_source) + stepwise_norm(target, self.step, of_target)
        return loss, {"source_norm": lengths[0], "target_norm": lengths[1]}
