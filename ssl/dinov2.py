"""DINOv2: DINO on class tokens and iBOT on hidden patches with a head each, targets that use all prototypes equally, and a
regulariser that keeps class tokens apart (Oquab et al. 2023, arXiv:2304.07193)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import MOST_ITERATIONS, check_count, check_not_negative
from ..core.distributed import all_reduce_sum, gather, own_rows, world
from ..core.errors import UserError
from ..core.method import Step, Views
from ..core.numerics import wide
from .parts.masked_teacher import MaskedTeacher, view_tokens
from .parts.masks import gather_patches
from .parts.prototypes import PrototypeHead, assignment_metrics, sinkhorn
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


def koleo(z: Tensor, rows: slice = slice(None)) -> Tensor:
    """Minus the mean logarithm of the distance to the nearest neighbour (Sablayrolles et al. 2019, arXiv:1806.03198, eq. 2).

    z: [N, D], normalised here. rows: the rows that this process owns (all by default); the neighbour may be any of the N rows.
    Returns a scalar. Raises ValueError if N < 2 (no neighbours).
    """
    if len(z) < 2:
        raise ValueError(f"koleo needs [N, D] with N >= 2, got {tuple(z.shape)}")
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(wide(z), dim=1)
        own = torch.arange(len(z), device=z.device)[rows]
        with torch.no_grad():
            nearest = (z[own] @ z.T).scatter(1, own[:, None], float("-inf")).argmax(1)
        return -(F.pairwise_distance(z[own], z[nearest], eps=1e-8) + 1e-8).log().mean()


class DINOv2(MaskedTeacher):
    """DINOv2's training objective on a timm ViT. The teacher is exported.

    Loss: class-token loss + patch_weight * patch loss + koleo_weight * KoLeo (section 4). Defaults are those of the authors'
    ssl_default_config.yaml, except that it centres with a running mean and shares one head. Differences from the authors' code, which keep
    results independent of the number of processes: KoLeo finds neighbours in the whole batch, theirs in one process's part; each view is
    masked independently, while they mask an exact fraction of a process's views, with evenly spread ratios. Frozen prototypes are left
    out of the optimizer's update, while the authors set their learning rate to 0 and let the optimizer's moments grow.

    patch_prototypes: Number of prototypes of the patches' head, 2 or more.
    patch_bottleneck: Width of the bottleneck of the patches' head, 2 or more.
    iterations: Sinkhorn-Knopp iterations, 1 to 10,000. They make the targets use all prototypes equally: over both whole views of all
        images for class tokens, over all hidden patches for patches.
    koleo_weight: Weight of the KoLeo regulariser on the student's class tokens, of each view by itself; 0 or more.

    Raises UserError for a backbone that is no plain ViT, and for values outside of these ranges.
    """

    couples_samples = True  # targets share the prototypes among all samples, and koleo finds neighbours among them
    least_block = 4  # smaller blocks are drawn where fewer patches are left to hide

    patch_head: PrototypeHead  # pyright: ignore[reportIncompatibleVariableOverride]
    teacher_patch_head: PrototypeHead  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        prototypes: int = 65536,
        patch_prototypes: int = 65536,
        patch_bottleneck: int = 256,
        iterations: int = 3,
        koleo_weight: float = 0.1,
        teacher_temperature_warmup: float = 0.3,
        momentum: float = 0.992,
        freeze_last_layer: float = 0.01,
        **keys: Any,
    ) -> None:
        check_not_negative("koleo_weight", koleo_weight, "0.1 is published")
        check_count("iterations", iterations, 1, MOST_ITERATIONS, "3 is published")
        for key, value in {"patch_prototypes": patch_prototypes, "patch_bottleneck": patch_bottleneck}.items():
            if value < 2:
                raise UserError(f"method.{key}: expected 2 or more, got {value}")
        super().__init__(
            backbone,
            chunk,
            "dinov2",
            {"prototypes": patch_prototypes, "bottleneck": patch_bottleneck},
            prototypes=prototypes,
            teacher_temperature_warmup=teacher_temperature_warmup,
            momentum=momentum,
            freeze_last_layer=freeze_last_layer,
            **keys,
        )
        self.koleo_weight, self.iterations = koleo_weight, iterations

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; batch.local: [L, N, C, s, s] or None; N is this process's share.

        Raises UserError for one image in all: no neighbours.
        """
        n = batch.images.shape[1]
        if n * world() < 2:
            raise UserError(
                "optim.batch_size: dinov2 needs at least 2 images, because koleo compares each image with another one"
            )
        found = self.compare(batch, progress)
        # View by view: the two class tokens of one image are to be near each other.
        spread = torch.stack([koleo(gather(view), own_rows(n)) for view in found.features]).sum()
        metrics = {
            "class_loss": found.class_loss.detach(),
            "patch_loss": found.patch_loss.detach(),
            "koleo": spread.detach(),
            "masked": found.masks.float().mean(),
            **assignment_metrics(found.targets, found.class_loss),
        }
        loss = found.class_loss + self.patch_weight * found.patch_loss + self.koleo_weight * spread
        return Step(loss, collapse_metrics(found.features, found.embedded[: self.views]) | metrics)

    @torch.no_grad()
    def targets(self, images: Tensor, index: Tensor, hidden: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """As in MaskedTeacher, by Sinkhorn-Knopp; the patches' [2, N, M, K] are 0 where not `hidden`."""
        features, patches = view_tokens(self.backbone, images, self.chunk)
        temperature = self.teacher_temperature_at(progress, self.teacher_temperature)
        logits = self.teacher_head(features)
        targets = sinkhorn(logits.flatten(0, 1), temperature, self.iterations, all_reduce_sum).view_as(logits)
        patch_logits = self.teacher_patch_head(gather_patches(patches, index))
        if index.ndim == 1:
            return targets, sinkhorn(patch_logits, temperature, self.iterations, all_reduce_sum)
        found = sinkhorn(
            patch_logits.flatten(0, 2), temperature, self.iterations, all_reduce_sum, hidden.flatten()
        ).view_as(patch_logits)
        # A batch without any hidden patch has no prototypes to share out: 0/0.
        return targets, torch.where(hidden[..., None], found, 0.0)
