"""SimSiam: each view predicts the other, and a stopped gradient alone prevents collapse (Chen & He 2021, arXiv:2011.10566)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.method import PretrainMethod, Step, Views
from ..core.model.encode import encode
from ..core.numerics import wide
from .parts.heads import mlp, predictor, project
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """D(p1, z2) / 2 + D(p2, z1) / 2, where D is minus the cosine (eq. 1 and 2).

    predictions, targets: [2, N, D]; the prediction of each view is compared with the target of the other. The caller detaches the targets
    where no gradient shall reach them. Returns the mean over N, from -1 to 1.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        return -F.cosine_similarity(wide(predictions), wide(targets.flip(0)), dim=-1).mean()


class SimSiam(PretrainMethod):
    """SimSiam's training objective on a backbone.

    projection: Widths of the projection head, hidden layers first, output last. BatchNorm follows every layer, the last one without
        scale and shift.
    prediction: Widths of the prediction head, a bottleneck. BatchNorm follows its hidden layers; the last width must equal the last of
        projection.
    stop_gradient: Whether targets are detached. false is the paper's ablation (section 4.1, figure 2): it shows collapse and is no way to
        train.
    constant_prediction_rate: Whether the prediction head's learning rate stays constant, as in the authors' recipe (table 1, "lr not
        decayed"; --fix-pred-lr in their code).

    Raises UserError for widths that make no head.
    """

    views = 2
    rows_per_position = 2
    couples_samples = True  # through the heads' BatchNorm
    takes_chunk = True

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        projection: tuple[int, ...] = (2048, 2048, 2048),
        prediction: tuple[int, ...] = (512, 2048),
        stop_gradient: bool = True,
        constant_prediction_rate: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.chunk, self.stop_gradient = backbone, chunk, stop_gradient
        self.projector = mlp([backbone.feature_dim, *projection], last="plain-norm", key="method.projection")
        self.predictor = predictor(projection, prediction, last="linear")
        self.constant_rate = (self.predictor,) if constant_prediction_rate else ()

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; N is this process's share."""
        features = encode(self.backbone, batch.images, self.chunk)  # [2, N, D]
        projections = project(self.projector, features)
        predictions = project(self.predictor, projections)
        targets = projections.detach() if self.stop_gradient else projections
        return Step(negative_cosine(predictions, targets), collapse_metrics(features, projections))
