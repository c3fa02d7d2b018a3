"""iBOT: DINO on class tokens, and for each hidden patch the student predicts the prototypes that the teacher, who sees the patch,
assigns to it (Zhou et al. 2022, arXiv:2111.07832)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.checks import check_fraction, check_positive
from ..core.distributed import all_reduce_sum
from ..core.method import Step, Views
from .dino import dino_targets
from .parts.masked_teacher import MaskedTeacher, view_tokens
from .parts.masks import gather_patches
from .parts.prototypes import assignment_metrics, center_update
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


class IBOT(MaskedTeacher):
    """iBOT's training objective on a timm ViT. The teacher is exported.

    Loss: L_[CLS] + patch_weight * L_MIM (section 3.2). Defaults are those of the published ViT-S/16 after 800 epochs.

    shared_head: Whether one head serves class and patch tokens, as in all published models. false gives patches a head of their own.
    teacher_patch_temperature: Temperature of the teacher's softmax for patches after the same warm-up as teacher_temperature, above 0.
    center_momentum: Momentum of the running mean of the teacher's logits that is subtracted from them, from 0 to 1. Class tokens and
        patches have a mean each.

    Raises UserError for a backbone that is no plain ViT, and for values outside of these ranges.
    """

    # The loss is each image's own, but the centres move once a step, towards the mean of the whole batch.
    couples_samples = True
    center: Tensor
    patch_center: Tensor

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        shared_head: bool = True,
        teacher_patch_temperature: float = 0.07,
        center_momentum: float = 0.9,
        **keys: Any,
    ) -> None:
        check_positive("teacher_patch_temperature", teacher_patch_temperature, "0.07 is published")
        check_fraction("center_momentum", center_momentum, "0.9 is published")
        super().__init__(backbone, chunk, "ibot", None if shared_head else {}, **keys)
        self.teacher_patch_temperature, self.center_momentum = teacher_patch_temperature, center_momentum
        self.least_block = max(1, (min(self.grid) // 3) ** 2)
        self.register_buffer("center", torch.zeros(len(self.head.weight)))
        self.register_buffer("patch_center", torch.zeros(len(self.head.weight)))

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; batch.local: [L, N, C, s, s] or None; N is this process's share."""
        found = self.compare(batch, progress)
        metrics = {
            "class_loss": found.class_loss.detach(),
            "patch_loss": found.patch_loss.detach(),
            "masked": found.masks.float().mean(),
            **assignment_metrics(found.targets, found.class_loss),
        }
        loss = found.class_loss + self.patch_weight * found.patch_loss
        return Step(loss, collapse_metrics(found.features, found.embedded[: self.views]) | metrics)

    @torch.no_grad()
    def targets(self, images: Tensor, index: Tensor, hidden: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """As in MaskedTeacher: softmax of centred logits. After the step both centres are updated, that of patches by all patches."""
        head, patch_head = self.teacher_head, self.teacher_patch_head or self.teacher_head
        features, patches = view_tokens(self.backbone, images, self.chunk)
        logits, z = head(features), patch_head.embed(patches)
        patch_logits = patch_head.compare(gather_patches(z, index))
        targets = dino_targets(logits, self.center, self.teacher_temperature_at(progress, self.teacher_temperature))
        patch_temperature = self.teacher_temperature_at(progress, self.teacher_patch_temperature)
        patch_targets = dino_targets(patch_logits, self.patch_center, patch_temperature)
        # The head ends in a linear layer: the logits of an image's mean are the mean of its patches' logits.
        means = patch_head.compare(z.mean(2))
        self.keep_after_step(
            center=center_update(self.center, logits, self.center_momentum, all_reduce_sum),
            patch_center=center_update(self.patch_center, means, self.center_momentum, all_reduce_sum),
        )
        return targets, patch_targets
