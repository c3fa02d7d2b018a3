"""DeepJDOT: an optimal plan moves source images to target ones by features and labels (Damodaran et al. 2018, arXiv:1803.10081)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.checks import check_not_negative
from ..core.errors import UserError
from ..core.kernels import squared_distances
from ..core.numerics import wide
from ..core.transport import transport_solver
from .parts.transfer import Joint, Transfer, Transferred

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


def label_costs(labels: Tensor, logits: Tensor) -> Tensor:
    """The cross-entropy of each source label with each target prediction: labels [N], logits [M, K] -> [N, M]."""
    return -wide(logits).log_softmax(1)[:, labels].T


class DeepJDOT(Transfer):
    """Cross-entropy on the source plus the cost of an optimal plan between all processes' source and target images.

    The cost of a pair is features * |f_s - f_t|^2 + labels * CE(y_s, p_t). The plan has uniform marginals (with `label_shift.resample`
    the weights of the images) and no gradient; it is solved exactly, in float64, once for all processes. Batches should be large: the
    paper has 500 images a domain.

    The authors' first script leaves `labels` out of the cost by which the plan is found, so that the plan and the loss differ; their
    second one and this have it in both. skada's weights of both costs are 1.

    features: Weight of the squared distance of features, 0 or more (alpha).
    labels: Weight of the cross-entropy of source labels and target predictions, 0 or more (lambda_t).
    trade_off: Weight of the plan's cost beside the cross-entropy, 0 or more. 0 is the control.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.

    Raises UserError for values outside of these ranges, and if POT is missing.
    """

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        features: float = 1e-3,
        labels: float = 1e-4,
        trade_off: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(classifier, chunk, trade_off, label_smoothing, "1 is the published one")
        check_not_negative("features", features, "0.001 is the published one")
        check_not_negative("labels", labels, "0.0001 is the published one")
        if features == labels == 0.0:
            raise UserError(
                "method.features and method.labels are both 0, so every plan costs nothing; raise one of them"
            )
        self.features, self.labels = features, labels
        self.plan = transport_solver("method deepjdot")

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """Watched: both parts of the plan's cost without their weights, and the share of pairs whose prediction is the source's label."""
        source, target = joint.whole_features()
        logits, labels = joint.whole_logits()[1], joint.whole_labels()
        distances, mistakes = squared_distances(source, target), label_costs(labels, logits)
        cost = self.features * distances + self.labels * mistakes
        plan = self.plan(cost, joint.whole_weights())
        with torch.no_grad():
            watched = {
                "feature_cost": (plan * distances).sum(),
                "label_cost": (plan * mistakes).sum(),
                "plan_agreement": (plan * (logits.argmax(1)[None] == labels[:, None])).sum(),
            }
        return (plan * cost).sum(), watched
