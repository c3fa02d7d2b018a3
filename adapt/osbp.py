"""OSBP: open-set adaptation by backpropagation (Saito et al. 2018, arXiv:1804.10427): one more output takes what is in no source class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_not_negative
from ..core.errors import UserError
from ..core.numerics import wide
from .parts.reversal import reverse_gradient
from .parts.transfer import Joint, Transfer, Transferred

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


def unknown_loss(logits: Tensor, boundary: float) -> Tensor:
    """The mean over rows of -t log u - (1 - t) log(1 - u), u the probability of the last output (section 3), t the boundary.

    logits: [N, K + 1]. u / (1 - u) = exp(z_(K+1) - logsumexp of the others), so neither logarithm is taken of a rounded 0.
    """
    odds = logits[:, -1] - logits[:, :-1].logsumexp(1)
    return F.binary_cross_entropy_with_logits(odds, torch.full_like(odds, boundary))


class OSBP(Transfer):
    """Cross-entropy on the source over K + 1 outputs, and a game about the last one on the target (section 3).

    The head pulls u, the probability of `unknown` on target images, to the boundary t; the features, whose gradient is reversed, push it
    away from there, to either side: an image is then aligned with a known class or rejected. An image is unknown where the last
    output is the highest. Tests may hold classes that the source lacks; they count as unknown. Both domains are encoded in
    one forward, so BatchNorm sees both; the authors encode each apart. Their code and tllib's add 1e-6 inside the logarithms, and in
    their code, which fills both outputs with t, any t acts as 0.5.

    boundary: t, between 0 and 1; 0.5 in the paper. A higher one makes the head expect more unknown images.
    reversal: What the reversed gradient is multiplied by, 0 or more; 1 in the paper, all the time. 0 is the control: the head still learns
        its last output, and the target does not change the features.
    trade_off: Weight of the target's loss beside the cross-entropy, 0 or more; 1 in the paper. With 0 nothing teaches the last output.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1; it smooths over all K + 1 outputs.

    Raises UserError for values outside of these ranges.
    """

    couples_samples = False
    is_game = True
    resamples = ("source",)  # what is unknown has no share that weights could make equal
    extra_outputs = 1

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        boundary: float = 0.5,
        reversal: float = 1.0,
        trade_off: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(classifier, chunk, trade_off, label_smoothing, "1 is the published one")
        if not 0.0 < boundary < 1.0:
            raise UserError(f"method.boundary: must lie between 0 and 1, got {boundary}; 0.5 is the published one")
        check_not_negative("reversal", reversal, "1 is the published one, and 0 is the control")
        if classifier.structure.extra != 1:
            raise ValueError(f"OSBP needs one output beside the classes, not {classifier.structure.extra}")
        self.boundary, self.reversal = boundary, reversal

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """The loss of the target's last output, through the reversal; watched: its mean u, and the shares that are called unknown."""
        logits = wide(self.classifier.head(reverse_gradient(joint.features[1], self.reversal)))
        with torch.no_grad():
            unknown = (joint.logits.argmax(2) == joint.logits.shape[2] - 1).float().mean(1)
            watched = {
                "unknown_probability": joint.logits[1].softmax(1)[:, -1].mean(),
                "unknown_target": unknown[1],
                "unknown_source": unknown[0],
            }
        return unknown_loss(logits, self.boundary), watched
