"""DeepCORAL: the covariances of both domains are pulled together (Sun & Saenko 2016, arXiv:1607.01719)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..core.numerics import wide
from .parts.below_head import check_below_head
from .parts.resampling import of_each_domain
from .parts.transfer import Joint, Transfer, Transferred

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


def coral(source: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """||C_S - C_T||_F^2 / (4 D^2) of [B, D] and [B', D], each with its unbiased covariance (eq. 1 to 3). Blind to means.

    weights: of images, above 0, [2, B] where B = B': the covariances are unbiased for independent images of these weights; None: all 1.
    """
    with torch.autocast(source.device.type, enabled=False):
        of_source, of_target = of_each_domain(weights)
        difference = _covariance(wide(source), of_source) - _covariance(wide(target), of_target)
        return difference.square().sum() / (4.0 * source.shape[1] ** 2)


def _covariance(x: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        centred = x - x.mean(0)
        return centred.T @ centred / (len(x) - 1)
    shares = weights.to(x)
    shares = shares / shares.sum()
    centred = x - shares @ x
    return (shares[:, None] * centred).T @ centred / (1.0 - shares.square().sum())


class DeepCORAL(Transfer):
    """Cross-entropy on the source plus the squared distance of both domains' covariances, of the global batch.

    tllib and DomainBed call another loss by this name: the mean of (C_S - C_T)^2, without the 4, plus the mean of squared differences of
    means. pytorch-adapt, DeepDA and skada have the paper's.

    layer: What is aligned: logits, as in the paper (its last layer), or the features that the head sees.
    trade_off: Weight of the distance beside the cross-entropy, 0 or more. The paper sets it so that both losses end alike: look at
        transfer_loss. 0 is the control.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.

    Raises UserError for values outside of these ranges, and for a batch of one image a domain.
    """

    needs_pairs = True

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        layer: Literal["logits", "features"] = "logits",
        trade_off: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(classifier, chunk, trade_off, label_smoothing, "1 is usual")
        if trade_off and layer == "features":
            check_below_head(classifier, "deepcoral with layer=features")
        self.layer = layer

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """Of all processes' images; watched: the squared distance of means, which the loss does not see, over the source's variance."""
        source, target = joint.whole_logits() if self.layer == "logits" else joint.whole_features()
        with torch.no_grad():
            apart = (source.mean(0) - target.mean(0)).square().sum()
            spread = source.var(0).sum().clamp(min=torch.finfo(source.dtype).tiny)
        return coral(source, target, joint.whole_weights()), {"mean_gap": apart / spread}
