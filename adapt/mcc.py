"""MCC: the classes that target predictions confuse are told apart (Jin et al. 2020, arXiv:1912.03699)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.checks import check_positive
from ..core.numerics import wide
from .parts.resampling import of_each_domain, weighted
from .parts.transfer import Joint, Transfer, Transferred

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier

ABSENT = 1e-20  # a class with less probability in the whole batch has no row: its quotient would be 0 / 0


def class_confusion(logits: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """The mean over classes of the share of class confusion that lies off the diagonal, from logits [B, K].

    C = P^T diag(w) P with P = softmax(logits / temperature) and w = 1 + exp(-H(P)), detached; each row of C divided by its sum. The paper
    scales w to a mean of 1, which these quotients cancel. 0 for certain predictions that cover the classes. weights: of images, [B],
    by which w is multiplied; None: all 1.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scaled = wide(logits) / temperature
        predictions = scaled.softmax(1)
        # H is computed from log-softmax, which avoids the logarithm of 0.
        certainty = 1.0 + torch.exp((predictions * scaled.log_softmax(1)).sum(1)).detach()
        certainty = weighted(certainty, weights)
        confusion = (predictions * certainty[:, None]).T @ predictions
        # The sum without the diagonal, not the difference of both: near 0 that would be rounding.
        off = confusion.masked_fill(torch.eye(len(confusion), dtype=torch.bool, device=confusion.device), 0.0).sum(1)
        return (off / confusion.sum(1).clamp(min=ABSENT)).mean()


class MCC(Transfer):
    """Cross-entropy on the source plus minimum class confusion on the target, of the global batch.

    tllib (0.4) has the same loss, with log(p + 1e-5) in the entropy; it divides columns instead of rows, which is equal since C is
    symmetric. pytorch-adapt's default temperature is 1. skada lets gradient through the weights w, which the authors do not.

    temperature: What target logits are divided by, above 0; 2.5 in the paper, 2 on DomainNet, 3 on VisDA (T).
    trade_off: Weight of the class confusion beside the cross-entropy, 0 or more; tllib has 10 on DomainNet. 0 is the control.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.

    Raises UserError for values outside of these ranges.
    """

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        temperature: float = 2.5,
        trade_off: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(classifier, chunk, trade_off, label_smoothing, "1 is the published one")
        check_positive("temperature", temperature, "2.5 is the published one")
        self.temperature = temperature

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """The confusion of all processes' target images; watched: the mean entropy of their predictions."""
        logits = joint.whole_logits()[1]
        entropy = torch.special.entr(logits.detach().softmax(1)).sum(1).mean()
        weights = of_each_domain(joint.whole_weights())[1]
        return class_confusion(logits, self.temperature, weights), {"target_entropy": entropy}
