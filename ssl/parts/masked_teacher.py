"""What iBOT and DINOv2 share: a student ViT that sees masked views, and a teacher, its moving average, that sees them whole."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ...core.checks import check_fraction, check_positive
from ...core.errors import UserError
from ...core.method import PretrainMethod, Views
from ...core.model.ema import follow, teacher_of
from ...core.model.encode import in_chunks, with_local
from ...core.model.vit_tokens import embed, plain_vit, transform
from ...core.train.schedules import cosine, ramp
from .blockwise import max_hidden, view_masks
from .masks import drop_padding, gather_patches, true_indices
from .prototypes import PrototypeHead, crops_loss, cross_entropy

if TYPE_CHECKING:
    from ...core.model.backbone import Backbone

POSITIVE = ("temperature", "teacher_temperature", "warmup_teacher_temperature", "patch_weight")
FRACTIONS = ("mask_probability", "teacher_temperature_warmup", "momentum", "freeze_last_layer")


def patch_loss(targets: Tensor, logits: Tensor, hidden: Tensor, temperature: float) -> Tensor:
    """Cross-entropy H(q, p) of the hidden patches: the mean over those of an image, then over images.

    This is eq. 2 of iBOT (Zhou et al. 2022, arXiv:2111.07832) as in the authors' code. An image without hidden patches counts as 0.
    targets: probabilities [..., M, K]. logits: [..., M, K]. hidden: bool [..., M]; other patches do not count. Targets and logits may
    also be [R, K], of the R hidden patches alone. Returns a scalar.
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
    """A ViT's features [V, N, D] and patch tokens [V, N, L, D] of images [V, N, C, H, W].

    masks: bool [V, N, L], the patches that the mask token `mask` [D] replaces. chunk: how many images are encoded at once.
    """
    if masks is None:
        tokens = in_chunks(partial(_tokens, backbone, mask), images, chunk=chunk)
    else:
        tokens = in_chunks(partial(_tokens, backbone, mask), images, masks, chunk=chunk)
    return tokens[:, :, 0], tokens[:, :, 1:]


def _tokens(backbone: Backbone, mask: Tensor | None, images: Tensor, masks: Tensor | None = None) -> Tensor:
    """Features and patch tokens in one tensor, [V, N, 1 + L, D]."""
    vit = backbone.model
    assert isinstance(vit, VisionTransformer)
    hidden = None if masks is None else masks.flatten(0, 1)
    tokens = transform(vit, embed(vit, images.flatten(0, 1), hidden, mask))
    features = vit.forward_head(tokens, pre_logits=True)
    joined = torch.cat([features[:, None], tokens[:, vit.num_prefix_tokens :]], 1)
    return joined.unflatten(0, images.shape[:2])


class Comparison(NamedTuple):
    """The student's losses against the teacher's targets, and what they are computed from."""

    class_loss: Tensor  # scalar
    patch_loss: Tensor  # scalar
    targets: Tensor  # [2, N, K]: the teacher's probabilities for the whole views
    features: Tensor  # [2, N, D]: the student's, of the masked whole views
    embedded: Tensor  # [2 + L, N, E]: bottleneck of the student's head, of all crops
    masks: Tensor  # bool [2, N, L]


class MaskedTeacher(PretrainMethod):
    """A student and a teacher with prototype heads. Subclasses say how the teacher's logits become targets.

    prototypes: Number of prototypes K of the class token's head, 2 or more.
    bottleneck: Width of that head's bottleneck, in which features are compared with prototypes, 2 or more.
    hidden: Width of the heads' hidden layers, 1 or more.
    layers: Number of linear layers in a head's MLP, the one to the bottleneck included, 1 to 1,000.
    mask_ratio: Smallest and largest fraction of the patches that a masked view hides, between 0 and 1; drawn uniformly between them.
    mask_probability: Probability from 0 to 1 that a whole view is masked. Each view is drawn independently.
    patch_weight: Weight of the patch loss, above 0; the class-token loss has weight 1.
    temperature: Temperature of the student's softmax, above 0 (tau_s).
    teacher_temperature: Temperature of the teacher's softmax after its warm-up, above 0 (tau_t).
    warmup_teacher_temperature: Teacher temperature at the start, above 0; it changes linearly to its final value.
    teacher_temperature_warmup: Fraction of the training, from 0 to 1, over which the teacher's temperature changes.
    momentum: Momentum of the teacher's moving average at the start, from 0 to 1; it rises to 1 along a cosine.
    freeze_last_layer: Fraction of the training, from 0 to 1, at the start of which the prototypes are not trained.
    """

    views = 2
    rows_per_position = 2
    hides_patches = True
    takes_local = True
    takes_chunk = True
    least_block: int  # area in patches from which blocks of a mask are drawn

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None,
        name: str,
        patch_head: Mapping[str, Any] | None,
        *,
        prototypes: int = 8192,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_probability: float = 0.5,
        patch_weight: float = 1.0,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        teacher_temperature_warmup: float = 0.0375,
        momentum: float = 0.996,
        freeze_last_layer: float = 0.00125,
    ) -> None:
        """name: the method's name in configs. patch_head: how the patches' head differs from `head`, e.g. {"prototypes": 64}; None if
        `head` serves class and patch tokens. Defaults: iBOT's; a subclass declares a key again where its default differs. Raises UserError.
        """
        super().__init__()
        sizes: dict[str, Any] = {"prototypes": prototypes, "hidden": hidden, "bottleneck": bottleneck, "layers": layers}
        head = PrototypeHead(backbone.feature_dim, **sizes)
        own_head = None if patch_head is None else PrototypeHead(backbone.feature_dim, **sizes | dict(patch_head))
        vit = plain_vit(backbone, name)
        self.chunk, self.mask_ratio, self.mask_probability = chunk, mask_ratio, mask_probability
        self.patch_weight, self.temperature, self.teacher_temperature = patch_weight, temperature, teacher_temperature
        self.warmup_teacher_temperature = warmup_teacher_temperature
        self.teacher_temperature_warmup = teacher_temperature_warmup
        self.momentum, self.freeze_last_layer = momentum, freeze_last_layer
        for key in POSITIVE:
            check_positive(key, getattr(self, key), self.published(key))
        for key in FRACTIONS:
            check_fraction(key, getattr(self, key), self.published(key))
        if not 0.0 < mask_ratio[0] <= mask_ratio[1] < 1.0:
            raise UserError(
                "method.mask_ratio: expected the smallest and the largest fraction of hidden patches, between 0 and 1, "
                f"got {list(mask_ratio)}; {self.published('mask_ratio')}"
            )
        backbone.allow_any_size(name)
        self.grid: tuple[int, int] = vit.patch_embed.grid_size
        self.student, self.mask = backbone, nn.Parameter(torch.zeros(vit.embed_dim))
        self.head, self.patch_head = head, own_head
        self.backbone, self.teacher_head = teacher_of(backbone), teacher_of(head)
        self.teacher_patch_head = None if own_head is None else teacher_of(own_head)

    @classmethod
    def published(cls, key: str) -> str:
        """The published value of a key, which is its default, for error messages."""
        signatures = (
            inspect.signature(base.__dict__["__init__"]) for base in cls.__mro__ if "__init__" in base.__dict__
        )
        default = next(found.parameters[key].default for found in signatures if key in found.parameters)
        return f"{list(default) if isinstance(default, tuple) else default} is published"

    def compare(self, batch: Views, progress: float) -> Comparison:
        """Both losses of a batch; targets come from `targets`, which subclasses define."""
        masks = self.masks(batch)
        index, hidden = true_indices(masks, max_hidden(self.grid, self.mask_ratio))  # [2, N, M]
        index = drop_padding(index, hidden, masks.shape[-1])
        features, patches = view_tokens(self.student, batch.images, self.chunk, masks, self.mask)
        crops = with_local(self.student, features, batch.local, self.chunk)
        embedded = self.head.embed(crops)
        logits = self.head.compare(embedded)  # [2 + L, N, K]
        targets, patch_targets = self.targets(batch.images, index, hidden, progress)
        class_loss = crops_loss(targets, logits, self.temperature)
        patch_logits = (self.patch_head or self.head)(gather_patches(patches, index))  # [2, N, M, K] or [R, K]
        loss = patch_loss(patch_targets, patch_logits, hidden, self.temperature)
        return Comparison(class_loss, loss, targets, features, embedded, masks)

    def targets(self, images: Tensor, index: Tensor, hidden: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities for the whole views, [2, N, K], and for the patches at `index`, [2, N, M, K] or [R, K]."""
        raise NotImplementedError

    def masks(self, batch: Views) -> Tensor:
        """Which patches of the whole views are hidden from the student, bool [2, N, L]."""
        return view_masks(
            batch.draws,
            self.grid,
            self.views,
            ratio=self.mask_ratio,
            probability=self.mask_probability,
            least=self.least_block,
        )

    def teacher_temperature_at(self, progress: float, final: float) -> float | Tensor:
        """The teacher's temperature now, on its way to `final`."""
        return ramp(self.warmup_teacher_temperature, final, progress, self.teacher_temperature_warmup)

    def frozen(self, progress: float) -> list[nn.Parameter]:
        """The prototypes, at the start of the training."""
        heads = [self.head] if self.patch_head is None else [self.head, self.patch_head]
        return [head.weight for head in heads] if progress < self.freeze_last_layer else []

    def after_step(self, progress: float) -> None:
        """Update the teacher's moving average."""
        super().after_step(progress)
        momentum = cosine(self.momentum, 1.0, progress)
        follow(self.backbone, self.student, momentum, self.skipped)
        follow(self.teacher_head, self.head, momentum, self.skipped)
        if self.patch_head is not None and self.teacher_patch_head is not None:
            follow(self.teacher_patch_head, self.patch_head, momentum, self.skipped)
