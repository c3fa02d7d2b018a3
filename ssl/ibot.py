"""iBOT: DINO on class tokens, and for each hidden patch the prototypes that the teacher, who sees it, names for it
(Zhou et al. 2022, arXiv:2111.07832)."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..core.distributed import all_reduce_sum
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.backbone import Backbone
from ..core.model.ema import follow, teacher_of
from ..core.model.encode import in_chunks, with_local
from ..core.model.vit_tokens import embed, plain_vit, transform
from ..core.train.schedules import cosine, ramp
from .dino import dino_targets
from .parts.blockwise import max_hidden, view_masks
from .parts.checks import check_fraction, check_positive
from .parts.masks import drop_padding, gather_patches, true_indices
from .parts.prototypes import PrototypeHead, assignment_metrics, center_update, crops_loss, cross_entropy
from .watch.collapse import collapse_metrics


def patch_loss(targets: Tensor, logits: Tensor, hidden: Tensor, temperature: float) -> Tensor:
    """H(q, p) of hidden patches: the mean over those of each image, then over images (eq. 2 as in the authors' code).

    targets: probabilities [..., M, K]. logits: [..., M, K]. hidden: bool [..., M]; the others do not count, and an image that
    hides nothing counts as 0. Targets and logits may be [R, K], of the hidden patches alone. Returns a scalar.
    """
    entropy = cross_entropy(targets, logits, temperature)
    if entropy.shape == hidden.shape:
        entropy = entropy * hidden
    else:
        entropy = torch.zeros_like(hidden, dtype=entropy.dtype).masked_scatter(hidden, entropy)
    return (entropy.sum(-1) / hidden.sum(-1).clamp(min=1)).mean()


def view_tokens(
    backbone: Backbone, images: Tensor, chunk: int | None, masks: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a ViT makes of images [V, N, C, H, W]: its features [V, N, D] and its patch tokens [V, N, L, D].

    masks: bool [V, N, L], patches that `mask` [D] stands for. chunk: images at once.
    """
    if masks is None:
        tokens = in_chunks(partial(_tokens, backbone, mask), images, chunk=chunk)
    else:
        tokens = in_chunks(partial(_tokens, backbone, mask), images, masks, chunk=chunk)
    return tokens[:, :, 0], tokens[:, :, 1:]


def _tokens(backbone: Backbone, mask: Tensor | None, images: Tensor, masks: Tensor | None = None) -> Tensor:
    """Features and patch tokens as one, [V, N, 1 + L, D]."""
    vit = backbone.model
    assert isinstance(vit, VisionTransformer)
    hidden = None if masks is None else masks.flatten(0, 1)
    tokens = transform(vit, embed(vit, images.flatten(0, 1), hidden, mask))
    features = vit.forward_head(tokens, pre_logits=True)
    together = torch.cat([features[:, None], tokens[:, vit.num_prefix_tokens :]], 1)
    return together.unflatten(0, images.shape[:2])


def check_mask_ratio(mask_ratio: tuple[float, float]) -> None:
    """Raises UserError unless it is a range of parts between 0 and 1."""
    if not 0.0 < mask_ratio[0] <= mask_ratio[1] < 1.0:
        raise UserError(
            f"method.mask_ratio: expected the smallest and the largest part of the patches, between 0 and 1, "
            f"got {list(mask_ratio)}; [0.1, 0.5] is published"
        )


class IBOT(PretrainMethod):
    """iBOT's training objective on a timm ViT; what is exported is the teacher.

    prototypes, hidden, bottleneck, layers: the head's (see PrototypeHead). shared_head: whether one head serves class and patch
    tokens, as in all published models. mask_ratio: the part of patches that is hidden in a masked view, uniform in this range.
    mask_probability: of a view to be masked. patch_weight: of the patches' loss beside the class tokens'. temperature: tau_s.
    teacher_temperature, teacher_patch_temperature: tau_t of class and patch tokens, reached linearly from
    warmup_teacher_temperature over the fraction teacher_temperature_warmup of the training. center_momentum: of both centres.
    momentum: the teacher's, raised to 1 along a cosine. freeze_last_layer: the fraction of the training in which the prototypes
    stand still. Defaults: those of the published ViT-S/16 after 800 epochs. Raises UserError for values that make no method.
    """

    views = 2
    rows_per_position = 2
    takes_local = True
    # The loss is each image's own, but the centres move once a step, towards the mean of the whole batch.
    couples_samples = True
    takes_chunk = True
    center: Tensor
    patch_center: Tensor

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        prototypes: int = 8192,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        shared_head: bool = True,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_probability: float = 0.5,
        patch_weight: float = 1.0,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        teacher_patch_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        teacher_temperature_warmup: float = 0.0375,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        freeze_last_layer: float = 0.00125,
    ) -> None:
        super().__init__()
        vit = plain_vit(backbone, "ibot")
        check_positive("temperature", temperature, "0.1 is published")
        check_positive("teacher_temperature", teacher_temperature, "0.07 is published")
        check_positive("teacher_patch_temperature", teacher_patch_temperature, "0.07 is published")
        check_positive("warmup_teacher_temperature", warmup_teacher_temperature, "0.04 is published")
        check_positive("patch_weight", patch_weight, "1.0 is published")
        check_fraction("mask_probability", mask_probability, "0.5 is published")
        check_fraction("teacher_temperature_warmup", teacher_temperature_warmup, "0.0375 is published")
        check_fraction("center_momentum", center_momentum, "0.9 is published")
        check_fraction("momentum", momentum, "0.996 is published")
        check_fraction("freeze_last_layer", freeze_last_layer, "0.00125 is published")
        check_mask_ratio(mask_ratio)
        backbone.allow_any_size("ibot")
        self.grid: tuple[int, int] = vit.patch_embed.grid_size
        self.chunk, self.mask_ratio, self.mask_probability = chunk, mask_ratio, mask_probability
        self.patch_weight, self.temperature, self.teacher_temperature = patch_weight, temperature, teacher_temperature
        self.teacher_patch_temperature, self.warmup_teacher_temperature = (
            teacher_patch_temperature,
            warmup_teacher_temperature,
        )
        self.teacher_temperature_warmup, self.center_momentum = teacher_temperature_warmup, center_momentum
        self.momentum, self.freeze_last_layer = momentum, freeze_last_layer
        build = partial(
            PrototypeHead,
            backbone.feature_dim,
            prototypes=prototypes,
            hidden=hidden,
            bottleneck=bottleneck,
            layers=layers,
        )
        self.student, self.mask = backbone, nn.Parameter(torch.zeros(vit.embed_dim))
        self.head, self.patch_head = build(), None if shared_head else build()
        self.backbone, self.teacher_head = teacher_of(backbone), teacher_of(self.head)
        self.teacher_patch_head = None if self.patch_head is None else teacher_of(self.patch_head)
        self.register_buffer("center", torch.zeros(prototypes))
        self.register_buffer("patch_center", torch.zeros(prototypes))

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; batch.local: [L, N, C, s, s] or None; N is this process's share."""
        masks = self.masks(batch)
        index, hidden = true_indices(masks, max_hidden(self.grid, self.mask_ratio))  # [2, N, M]
        index = drop_padding(index, hidden, masks.shape[-1])
        features, patches = view_tokens(self.student, batch.images, self.chunk, masks, self.mask)
        crops = with_local(self.student, features, batch.local, self.chunk)
        embedded = self.head.embed(crops)
        logits = self.head.compare(embedded)  # [2 + L, N, K]
        targets, patch_targets = self.targets(batch.images, index, progress)
        of_class = crops_loss(targets, logits, self.temperature)
        patch_logits = (self.patch_head or self.head)(gather_patches(patches, index))  # [2, N, M, K] or [R, K]
        of_patch = patch_loss(patch_targets, patch_logits, hidden, self.temperature)
        metrics = {
            "class_loss": of_class.detach(),
            "patch_loss": of_patch.detach(),
            "masked": masks.float().mean(),
            **assignment_metrics(targets, of_class),
        }
        return Step(
            of_class + self.patch_weight * of_patch, collapse_metrics(features, embedded[: self.views]) | metrics
        )

    def frozen(self, progress: float) -> list[nn.Parameter]:
        """The prototypes, in the beginning, as in the authors' code."""
        heads = [self.head] if self.patch_head is None else [self.head, self.patch_head]
        return [head.weight for head in heads] if progress < self.freeze_last_layer else []

    def masks(self, batch: Views) -> Tensor:
        """Which patches of the whole views the student does not see, bool [2, N, L]."""
        least = max(1, (min(self.grid) // 3) ** 2)
        return view_masks(
            batch.draws, self.grid, self.views, ratio=self.mask_ratio, probability=self.mask_probability, least=least
        )

    @torch.no_grad()
    def targets(self, images: Tensor, index: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """What the teacher says of the whole views, [2, N, K], and of the patches at `index`, [2, N, M, K] or [R, K].

        By the centres of the steps before; then the centres' own step. The patches' centre is that of all patches.
        """
        head, patch_head = self.teacher_head, self.teacher_patch_head or self.teacher_head
        features, patches = view_tokens(self.backbone, images, self.chunk)
        logits, z = head(features), patch_head.embed(patches)
        patch_logits = patch_head.compare(gather_patches(z, index))
        start, over = self.warmup_teacher_temperature, self.teacher_temperature_warmup
        targets = dino_targets(logits, self.center, ramp(start, self.teacher_temperature, progress, over))
        patch_targets = dino_targets(
            patch_logits, self.patch_center, ramp(start, self.teacher_patch_temperature, progress, over)
        )
        # The head ends in a linear layer: the logits of an image's mean are the mean of its patches' logits.
        means = patch_head.compare(z.mean(2))
        self.center.copy_(center_update(self.center, logits, self.center_momentum, all_reduce_sum))
        self.patch_center.copy_(center_update(self.patch_center, means, self.center_momentum, all_reduce_sum))
        return targets, patch_targets

    def after_step(self, progress: float) -> None:
        """The teacher's step."""
        momentum = cosine(self.momentum, 1.0, progress)
        follow(self.backbone, self.student, momentum)
        follow(self.teacher_head, self.head, momentum)
        if self.patch_head is not None and self.teacher_patch_head is not None:
            follow(self.teacher_patch_head, self.patch_head, momentum)
