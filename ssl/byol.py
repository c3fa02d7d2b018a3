"""BYOL: the online network predicts the target network's projection of the other view; the target is a moving average of the online
network (Grill et al. 2020, arXiv:2006.07733).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_fraction
from ..core.method import PretrainMethod, Step, Views
from ..core.model.ema import follow, teacher_of
from ..core.model.encode import encode
from ..core.numerics import wide
from ..core.train.schedules import cosine
from .parts.heads import mlp, predictor, project
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """2 - 2 cos(q, z'), the squared distance of the normalised vectors, summed over both directions (eq. 2 and section 3.1).

    predictions, targets: [2, N, D]; the prediction of each view is compared with the target of the other. Returns the mean over N.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        cosines = F.cosine_similarity(wide(predictions), wide(targets.flip(0)), dim=-1)
        return (2.0 - 2.0 * cosines).mean(1).sum()


class BYOL(PretrainMethod):
    """BYOL's training objective. The online backbone is exported.

    momentum: Momentum of the target network's moving average at the start, from 0 to 1; it rises to 1 along a cosine (tau_base in
        section 3.2). 0.99 to 0.999 is usual.
    projection: Widths of the projection head, hidden layers first, output last. BatchNorm follows each hidden layer.
    prediction: Widths of the prediction head, built alike; the last must equal the last of projection.

    Raises UserError for values outside of these ranges.
    """

    views = 2
    rows_per_position = 2
    couples_samples = True  # through the heads' BatchNorm, without which BYOL collapses
    takes_chunk = True

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        momentum: float = 0.996,
        projection: tuple[int, ...] = (4096, 256),
        prediction: tuple[int, ...] = (4096, 256),
    ) -> None:
        super().__init__()
        check_fraction("momentum", momentum, "0.99 to 0.999 is usual")
        self.backbone, self.chunk, self.momentum = backbone, chunk, momentum
        self.projector = mlp([backbone.feature_dim, *projection], last="linear", key="method.projection")
        self.predictor = predictor(projection, prediction, last="linear")
        self.target_backbone, self.target_projector = teacher_of(backbone), teacher_of(self.projector)

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; N is this process's share."""
        features = encode(self.backbone, batch.images, self.chunk)  # [2, N, D]
        projections = project(self.projector, features)
        predictions = project(self.predictor, projections)
        with torch.no_grad():
            targets = project(self.target_projector, encode(self.target_backbone, batch.images, self.chunk))
        return Step(byol_loss(predictions, targets), collapse_metrics(features, projections))

    def after_step(self, progress: float) -> None:
        """Update the target network's moving average."""
        momentum = cosine(self.momentum, 1.0, progress)
        follow(self.target_backbone, self.backbone, momentum, self.skipped)
        follow(self.target_projector, self.projector, momentum, self.skipped)
