"""DINO: from each crop of an image the student predicts the prototypes that its teacher, a moving average, assigns to the other whole
views (Caron et al. 2021, arXiv:2104.14294).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.checks import check_fraction, check_positive
from ..core.distributed import all_reduce_sum
from ..core.method import PretrainMethod, Step, Views
from ..core.model.ema import follow, teacher_of
from ..core.model.encode import encode, with_local
from ..core.numerics import wide
from ..core.train.schedules import cosine, ramp
from .parts.prototypes import PrototypeHead, assignment_metrics, center_update, crops_loss
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


def dino_targets(teacher_logits: Tensor, center: Tensor, temperature: float | Tensor) -> Tensor:
    """The teacher's probabilities softmax((g_t - c) / tau_t) (eq. 1 and section 3.1).

    Centring keeps one prototype from taking all images, sharpening keeps all prototypes from taking equal shares of each.
    teacher_logits: [..., K]. center: [K]. Returns probabilities [..., K].
    """
    with torch.autocast(teacher_logits.device.type, enabled=False):
        return ((wide(teacher_logits) - center) / temperature).softmax(-1)


class DINO(PretrainMethod):
    """DINO's training objective: cross-entropy of crops with the teacher's whole views (eq. 3). The teacher is exported.

    prototypes: Number of prototypes K, the head's output, 2 or more.
    hidden: Width of the head's hidden layers, 1 or more.
    bottleneck: Width of the head's bottleneck, in which features are compared with prototypes, 2 or more.
    layers: Number of linear layers in the head's MLP, the one to the bottleneck included, 1 to 1,000.
    head_norm: Whether BatchNorm follows the head's hidden layers; the authors use it with convolutional networks.
    temperature: Temperature of the student's softmax, above 0 (tau_s).
    teacher_temperature: Temperature of the teacher's softmax after its warm-up, above 0 (tau_t).
    warmup_teacher_temperature: Teacher temperature at the start, above 0; it changes linearly to its final value.
    teacher_temperature_warmup: Fraction of the training, from 0 to 1, over which the teacher's temperature changes.
    center_momentum: Momentum of the running mean of the teacher's logits that is subtracted from them, from 0 to 1 (m in eq. 4).
    momentum: Momentum of the teacher's moving average at the start, from 0 to 1; it rises to 1 along a cosine (lambda).
    freeze_last_layer: Fraction of the training, from 0 to 1, at the start of which the prototypes are not trained. The default is one
        epoch of 100.

    Raises UserError for values outside of these ranges.
    """

    views = 2
    rows_per_position = 2
    takes_local = True
    # The loss is each image's own, but the centre moves once a step, towards the mean of the whole batch.
    couples_samples = True
    takes_chunk = True
    center: Tensor

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        head_norm: bool = False,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        teacher_temperature_warmup: float = 0.0,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        freeze_last_layer: float = 0.01,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature, "0.04 to 0.1 is usual")
        check_positive("teacher_temperature", teacher_temperature, "0.04 to 0.1 is usual")
        check_positive("warmup_teacher_temperature", warmup_teacher_temperature, "0.04 to 0.1 is usual")
        check_fraction("teacher_temperature_warmup", teacher_temperature_warmup, "0.1 is a tenth of the training")
        check_fraction("center_momentum", center_momentum, "0.9 is usual")
        check_fraction("momentum", momentum, "0.99 to 0.9995 is usual")
        check_fraction("freeze_last_layer", freeze_last_layer, "0.01 is a hundredth of the training")
        backbone.allow_any_size("dino")
        self.chunk, self.temperature, self.momentum = chunk, temperature, momentum
        self.teacher_temperature, self.warmup_teacher_temperature = teacher_temperature, warmup_teacher_temperature
        self.teacher_temperature_warmup, self.center_momentum = teacher_temperature_warmup, center_momentum
        self.freeze_last_layer = freeze_last_layer
        self.student = backbone
        self.head = PrototypeHead(
            backbone.feature_dim,
            prototypes=prototypes,
            hidden=hidden,
            bottleneck=bottleneck,
            layers=layers,
            norm=head_norm,
        )
        self.backbone, self.teacher_head = teacher_of(backbone), teacher_of(self.head)
        self.register_buffer("center", torch.zeros(prototypes))

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; batch.local: [L, N, C, s, s] or None; N is this process's share."""
        features = encode(self.student, batch.images, self.chunk)  # [2, N, D]
        crops = with_local(self.student, features, batch.local, self.chunk)
        embedded = self.head.embed(crops)  # one forward: a BatchNorm sees all crops as one batch
        logits = self.head.compare(embedded)  # [2 + L, N, K]
        targets = self.targets(batch.images, progress)
        loss = crops_loss(targets, logits, self.temperature)
        return Step(loss, collapse_metrics(features, embedded[: self.views]) | assignment_metrics(targets, loss))

    @torch.no_grad()
    def targets(self, images: Tensor, progress: float) -> Tensor:
        """The teacher's probabilities for the whole views, [2, N, K], with the centre of earlier steps, which is updated after the step."""
        logits = self.teacher_head(encode(self.backbone, images, self.chunk))
        start, end = self.warmup_teacher_temperature, self.teacher_temperature
        targets = dino_targets(logits, self.center, ramp(start, end, progress, self.teacher_temperature_warmup))
        self.keep_after_step(center=center_update(self.center, logits, self.center_momentum, all_reduce_sum))
        return targets

    def frozen(self, progress: float) -> list[nn.Parameter]:
        """The prototypes, at the start of the training, as in the authors' code."""
        return [self.head.weight] if progress < self.freeze_last_layer else []

    def after_step(self, progress: float) -> None:
        """Update the teacher's moving average and the centre."""
        super().after_step(progress)
        momentum = cosine(self.momentum, 1.0, progress)
        follow(self.backbone, self.student, momentum, self.skipped)
        follow(self.teacher_head, self.head, momentum, self.skipped)
