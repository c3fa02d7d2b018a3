"""DINOv2: DINO on class tokens and iBOT on hidden patches with a head each, balanced targets, and class tokens that keep their
distance (Oquab et al. 2023, arXiv:2304.07193)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.distributed import all_reduce_sum, gather, own_rows, world
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.backbone import Backbone
from ..core.model.ema import follow, teacher_of
from ..core.model.encode import with_local
from ..core.model.vit_tokens import plain_vit
from ..core.numerics import wide
from ..core.train.schedules import cosine, ramp
from .ibot import check_mask_ratio, patch_loss, view_tokens
from .parts.blockwise import max_hidden, view_masks
from .parts.checks import check_fraction, check_positive
from .parts.masks import drop_padding, gather_patches, true_indices
from .parts.prototypes import PrototypeHead, assignment_metrics, crops_loss, sinkhorn
from .watch.collapse import collapse_metrics

LEAST_BLOCK = 4  # patches: smaller blocks are drawn where fewer are left to hide


def koleo(z: Tensor, rows: slice = slice(None)) -> Tensor:
    """Minus the mean logarithm of the distance to the nearest neighbour (Sablayrolles et al. 2019, arXiv:1806.03198, eq. 2).

    z: [N, D], normalised here. rows: those whose distance this process owns (all by default); neighbours are always all others.
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


class DINOv2(PretrainMethod):
    """DINOv2's training objective on a timm ViT; what is exported is the teacher.

    prototypes, bottleneck, patch_prototypes, patch_bottleneck, hidden, layers: of the heads of class tokens and of patches (see
    PrototypeHead). iterations: of Sinkhorn-Knopp, which makes the targets use all prototypes equally: those of class tokens among
    both whole views of all images, those of patches among all hidden patches. koleo_weight: of `koleo` of the student's class
    tokens, view by view, whose neighbours are sought in the whole batch (the authors' code: in a process's part of it, which would
    change with the number of processes). mask_ratio: the part of patches that is hidden in a masked view, uniform in this range.
    mask_probability: of a view to be masked, each independently (the authors mask exactly this part of a process's views, with
    evenly spread ratios). patch_weight: of the patches' loss. temperature: tau_s. teacher_temperature: tau_t, reached linearly from
    warmup_teacher_temperature over the fraction teacher_temperature_warmup of the training. momentum: the teacher's, raised to 1
    along a cosine. freeze_last_layer: the fraction of the training in which the prototypes stand still. Defaults: those of the
    authors' ssl_default_config.yaml, but for its centring and shared head. Raises UserError for values that make no method.
    """

    views = 2
    rows_per_position = 2
    takes_local = True
    couples_samples = True  # targets share the prototypes among all samples, and koleo seeks neighbours among them
    takes_chunk = True

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        prototypes: int = 65536,
        bottleneck: int = 256,
        patch_prototypes: int = 65536,
        patch_bottleneck: int = 256,
        hidden: int = 2048,
        layers: int = 3,
        iterations: int = 3,
        koleo_weight: float = 0.1,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_probability: float = 0.5,
        patch_weight: float = 1.0,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        teacher_temperature_warmup: float = 0.3,
        momentum: float = 0.992,
        freeze_last_layer: float = 0.01,
    ) -> None:
        super().__init__()
        vit = plain_vit(backbone, "dinov2")
        check_positive("temperature", temperature, "0.1 is published")
        check_positive("teacher_temperature", teacher_temperature, "0.07 is published")
        check_positive("warmup_teacher_temperature", warmup_teacher_temperature, "0.04 is published")
        check_positive("patch_weight", patch_weight, "1.0 is published")
        check_fraction("mask_probability", mask_probability, "0.5 is published")
        check_fraction("teacher_temperature_warmup", teacher_temperature_warmup, "0.3 is published")
        check_fraction("momentum", momentum, "0.992 is published")
        check_fraction("freeze_last_layer", freeze_last_layer, "0.01 is published")
        check_mask_ratio(mask_ratio)
        if koleo_weight < 0.0:
            raise UserError(f"method.koleo_weight: expected 0 or more, got {koleo_weight}; 0.1 is published")
        if iterations < 1:
            raise UserError(
                f"method.iterations: expected 1 or more of Sinkhorn-Knopp, got {iterations}; 3 is published"
            )
        for key, value in {"patch_prototypes": patch_prototypes, "patch_bottleneck": patch_bottleneck}.items():
            if value < 2:
                raise UserError(f"method.{key}: expected 2 or more, got {value}")
        backbone.allow_any_size("dinov2")
        self.grid: tuple[int, int] = vit.patch_embed.grid_size
        self.chunk, self.mask_ratio, self.mask_probability = chunk, mask_ratio, mask_probability
        self.patch_weight, self.koleo_weight, self.iterations = patch_weight, koleo_weight, iterations
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.warmup_teacher_temperature = warmup_teacher_temperature
        self.teacher_temperature_warmup = teacher_temperature_warmup
        self.momentum, self.freeze_last_layer = momentum, freeze_last_layer
        build = partial(PrototypeHead, backbone.feature_dim, hidden=hidden, layers=layers)
        self.student, self.mask = backbone, nn.Parameter(torch.zeros(vit.embed_dim))
        self.head = build(prototypes=prototypes, bottleneck=bottleneck)
        self.patch_head = build(prototypes=patch_prototypes, bottleneck=patch_bottleneck)
        self.backbone = teacher_of(backbone)
        self.teacher_head, self.teacher_patch_head = teacher_of(self.head), teacher_of(self.patch_head)

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; batch.local: [L, N, C, s, s] or None; N is this process's share.

        Raises UserError for one image in all: no neighbours.
        """
        n = batch.images.shape[1]
        if n * world() < 2:
            raise UserError("optim.batch_size: dinov2 needs at least 2 images, koleo seeks neighbours among them")
        masks = self.masks(batch)
        index, hidden = true_indices(masks, max_hidden(self.grid, self.mask_ratio))  # [2, N, M]
        index = drop_padding(index, hidden, masks.shape[-1])
        features, patches = view_tokens(self.student, batch.images, self.chunk, masks, self.mask)
        crops = with_local(self.student, features, batch.local, self.chunk)
        embedded = self.head.embed(crops)
        logits = self.head.compare(embedded)  # [2 + L, N, K]
        targets, patch_targets = self.targets(batch.images, index, hidden, progress)
        of_class = crops_loss(targets, logits, self.temperature)
        patch_logits = self.patch_head(gather_patches(patches, index))  # [2, N, M, K] or [R, K]
        of_patch = patch_loss(patch_targets, patch_logits, hidden, self.temperature)
        # View by view: the two class tokens of one image are to be near each other.
        spread = torch.stack([koleo(gather(view), own_rows(n)) for view in features]).sum()
        metrics = {
            "class_loss": of_class.detach(),
            "patch_loss": of_patch.detach(),
            "koleo": spread.detach(),
            "masked": masks.float().mean(),
            **assignment_metrics(targets, of_class),
        }
        loss = of_class + self.patch_weight * of_patch + self.koleo_weight * spread
        return Step(loss, collapse_metrics(features, embedded[: self.views]) | metrics)

    def frozen(self, progress: float) -> list[nn.Parameter]:
        """The prototypes, in the beginning. The authors set their rate to 0 and let the moments grow; here those begin after it."""
        return [self.head.weight, self.patch_head.weight] if progress < self.freeze_last_layer else []

    def masks(self, batch: Views) -> Tensor:
        """Which patches of the whole views the student does not see, bool [2, N, L]."""
        return view_masks(
            batch.draws,
            self.grid,
            self.views,
            ratio=self.mask_ratio,
            probability=self.mask_probability,
            least=LEAST_BLOCK,
        )

    @torch.no_grad()
    def targets(self, images: Tensor, index: Tensor, hidden: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """What the teacher says of the whole views, [2, N, K], and of the patches at `index`: [2, N, M, K], 0 where not `hidden`,
        or [R, K]."""
        features, patches = view_tokens(self.backbone, images, self.chunk)
        start, end = self.warmup_teacher_temperature, self.teacher_temperature
        temperature = ramp(start, end, progress, self.teacher_temperature_warmup)
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

    def after_step(self, progress: float) -> None:
        """The teacher's step."""
        momentum = cosine(self.momentum, 1.0, progress)
        follow(self.backbone, self.student, momentum)
        follow(self.teacher_head, self.head, momentum)
        follow(self.teacher_patch_head, self.patch_head, momentum)
