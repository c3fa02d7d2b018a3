"""JAN: the joint maximum mean discrepancy of features and predictions is minimised (Long et al. 2017, arXiv:1605.06636)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.checks import check_positive
from ..core.kernels import EXPONENTS, gaussian_kernels, squared_distances, unbiased_mmd
from .dan import checked_exponents, feature_kernels
from .parts.transfer import Joint, Transfer, Transferred

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


def prediction_kernels(predictions: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """exp(-d^2 / (2 sigma^2)) of predictions [2, B, K]: within source, within target, between both, each [B, B]."""
    source, target = predictions
    scale = torch.full((), sigma**2, dtype=predictions.dtype, device=predictions.device)
    pairs = ((source, source), (target, target), (source, target))
    within_source, within_target, between = (gaussian_kernels(squared_distances(x, y), scale, (0,)) for x, y in pairs)
    return within_source, within_target, between


class JAN(Transfer):
    """Cross-entropy on the source plus the unbiased joint MMD of features and predictions, of all pairs of the global batch.

    The kernel of a pair is DAN's kernel of the features times a Gaussian kernel of the predictions, softmax of the logits, through which
    gradient flows. Equal to DAN where all predictions are alike.

    tllib has the same kernels but for the zero distances in the scale of the features'; it adds 2 / (B - 1), and is negative even so
    (its issue 158), as an unbiased estimate is. pytorch-adapt's default is the estimate in linear time with one kernel a layer.
    Adversarial JAN (JAN-A) is left out.

    exponents: The u of the kernels of features, as DAN has them.
    sigma: Width of the kernel of predictions, above 0; 0.92 in tllib.
    trade_off: Weight of the discrepancy beside the cross-entropy, 0 or more. 0 is the control.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.

    Raises UserError for values outside of these ranges, and for a batch of one image a domain.
    """

    needs_pairs = True

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        exponents: tuple[int, ...] = EXPONENTS,
        sigma: float = 0.92,
        trade_off: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(classifier, chunk, trade_off, label_smoothing, "1 is the published one")
        check_positive("sigma", sigma, "0.92 is tllib's")
        self.exponents, self.sigma = checked_exponents(exponents), sigma

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """Of all processes' images; watched: the mean squared distance of features, which falls to 0 where they collapse."""
        *of_features, scale = feature_kernels(joint.whole_features(), self.exponents)
        of_predictions = prediction_kernels(joint.whole_logits().softmax(-1), self.sigma)
        within_source, within_target, between = (f * p for f, p in zip(of_features, of_predictions, strict=True))
        loss = unbiased_mmd(within_source, within_target, between, joint.whole_weights())
        return loss, {"mean_squared_distance": scale}
