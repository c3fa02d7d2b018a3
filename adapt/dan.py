"""DAN: the maximum mean discrepancy of both domains' features is minimised (Long et al. 2015, arXiv:1502.02791)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import UserError
from ..core.kernels import EXPONENTS, gaussian_kernels, mean_squared_distance, squared_distances, unbiased_mmd
from .parts.below_head import check_below_head
from .parts.transfer import Joint, Transfer, Transferred

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.model.classifier import Classifier


class DAN(Transfer):
    """Cross-entropy on the source plus the unbiased multi-kernel MMD of the features that the head sees, of the global batch.

    k = sum over u of exp(-d^2 / (2 * 2^u * m)), m the mean squared distance over all pairs of different images of both domains, detached.
    The estimate compares all pairs (not the paper's estimate in linear time) and has mean 0 where both domains are alike, so it is
    negative half of the time. As in tllib the kernels have equal weights; the paper learns them.

    tllib's differs: m counts the zero distances of images to themselves, 2 / (B - 1) is added whatever the number of kernels, and its
    default is the estimate in linear time. pytorch-adapt takes one kernel and the median of the source's distances with those zeros.
    DeepDA is biased. skada is biased, does not square distances, and lets gradient through the median.

    exponents: The u of the kernels.
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
        trade_off: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(classifier, chunk, trade_off, label_smoothing, "1 is the published one")
        if trade_off:
            check_below_head(classifier, "dan")
        self.exponents = checked_exponents(exponents)

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """Of all processes' features; watched: their mean squared distance, which falls to 0 where features collapse."""
        features = joint.whole_features()
        within_source, within_target, between, scale = feature_kernels(features, self.exponents)
        loss = unbiased_mmd(within_source, within_target, between, joint.whole_weights())
        return loss, {"mean_squared_distance": scale}


def feature_kernels(features: Tensor, exponents: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernels of features [2, B, D]: within source, within target, between both, each [B, B]; and the scale m."""
    source, target = features
    scale = mean_squared_distance(features.flatten(0, 1))
    pairs = ((source, source), (target, target), (source, target))
    within_source, within_target, between = (
        gaussian_kernels(squared_distances(x, y), scale, exponents) for x, y in pairs
    )
    return within_source, within_target, between, scale


def checked_exponents(exponents: tuple[int, ...]) -> tuple[int, ...]:
    """Raises UserError unless there are some, each from -30 to 30: beyond, a kernel is 0 or 1 whatever the features."""
    if not exponents or not all(-30 <= u <= 30 for u in exponents):
        raise UserError(
            f"method.exponents: expected whole numbers from -30 to 30, at least one, got {list(exponents)}; [-3, -2, -1, 0, 1] is usual"
        )
    return tuple(exponents)
