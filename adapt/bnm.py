"""BNM: the nuclear norm of the target's predictions is maximised (Cui et al. 2020, arXiv:2003.12237)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.numerics import wide
from .parts.resampling import of_each_domain
from .parts.transfer import Joint, Transfer, Transferred

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


def nuclear_norm(predictions: Tensor) -> Tensor:
    """The sum of the singular values of [B, K]; its gradient is finite for equal and vanishing ones. NaN where a number is not finite."""
    rows = wide(predictions)
    finite = rows.isfinite().all()
    with torch.autocast(predictions.device.type, enabled=False):
        # The solver refuses such numbers; so the step is skipped as any other with such a loss.
        norm = torch.linalg.svdvals(torch.where(finite, rows, 0.0)).sum()
    return norm + torch.where(finite, 0.0, torch.nan)


def fast_nuclear_norm(predictions: Tensor) -> Tensor:
    """Its approximation by the min(B, K) longest columns of [B, K] (FBNM; Cui et al. 2021, arXiv:2107.06154)."""
    lengths = torch.linalg.vector_norm(wide(predictions), dim=0)
    return lengths.topk(min(predictions.shape)).values.sum()


class BNM(Transfer):
    """Cross-entropy on the source minus the nuclear norm of the target's predictions over B, the images of the global batch.

    The norm is largest, sqrt(B min(B, K)), where predictions are certain and classes equally frequent, so BNM assumes about as much.
    The authors' code and DeepDA take the mean of the singular values instead of their sum over B: B / min(B, K) times this loss, which is
    3 at B = 36 and K = 12. With their `trade_off` t, give t B / min(B, K). pytorch-adapt divides by B, too.

    fast: Whether the norm is approximated by lengths of columns, without a singular value decomposition (FBNM).
    trade_off: Weight of the norm beside the cross-entropy, 0 or more. 0 is the control.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.

    Raises UserError for values outside of these ranges.
    """

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        fast: bool = False,
        trade_off: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(classifier, chunk, trade_off, label_smoothing, "1 is the published one")
        self.fast = fast

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """Of all processes' target images; watched: the mean entropy of their predictions, and the norm's share of its largest value."""
        predictions = joint.whole_logits()[1].softmax(1)
        weights = of_each_domain(joint.whole_weights())[1]
        # A row times sqrt(w) adds to the singular values what w equal rows would.
        rows = predictions if weights is None else predictions * weights.sqrt()[:, None]
        norm = (fast_nuclear_norm if self.fast else nuclear_norm)(rows)
        images, classes = predictions.shape
        watched = {
            "target_entropy": torch.special.entr(predictions.detach()).sum(1).mean(),
            "norm_share": norm.detach() / (images * min(images, classes)) ** 0.5,
        }
        return -norm / images, watched
