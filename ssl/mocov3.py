"""MoCo v3: a query finds the key of its own image, made by a momentum encoder, among those of the whole batch (Chen, Xie & He 2021,
arXiv:2104.02057).

There is no queue, because the batch is large. Keys carry no gradient, so gathering them costs no communication in the backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..core.checks import check_fraction, check_positive
from ..core.distributed import gather, own_rows, world
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.ema import follow, teacher_of
from ..core.model.encode import encode
from ..core.model.sincos import fix_positions
from ..core.numerics import wide
from ..core.train.schedules import cosine
from .parts.heads import mlp, predictor, project
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """[V, n, D] and [V, N, D] -> [V, n, N]: each query of a view against the keys of the other view."""
    with torch.autocast(queries.device.type, enabled=False):
        return F.normalize(wide(queries), dim=-1) @ F.normalize(wide(keys), dim=-1).flip(0).mT


def info_nce(similarities: Tensor, own: Tensor, temperature: float) -> Tensor:
    """InfoNCE (section 3, eq. 1) of both directions, each scaled by 2 tau as in algorithm 1.

    similarities: [2, n, N] cosines of queries and keys. own: int64 [n], index of the key that belongs to each query; the other N - 1 keys
    are its negatives. Returns the mean over n, summed over the two directions.
    """
    with torch.autocast(similarities.device.type, enabled=False):
        logits = wide(similarities) / temperature
        return 2.0 * temperature * 2.0 * F.cross_entropy(logits.flatten(0, 1), own.repeat(2))


class MoCoV3(PretrainMethod):
    """MoCo v3's training objective (eq. 1, algorithm 1). The query encoder's backbone is exported.

    A ViT without trained weights is initialised as in the authors' code. The heads have no biases.

    temperature: Temperature of the softmax over similarities, above 0 (tau in eq. 1). The authors use 0.2 for ViTs and 1.0 for ResNets.
    momentum: Momentum of the momentum encoder's moving average at the start, from 0 to 1; it rises to 1 along a cosine.
    projection: Widths of the projection head, hidden layers first, output last. BatchNorm follows every layer, the last one without
        scale and shift. The default is the authors' for ViTs; for ResNets they use [4096, 256].
    prediction: Widths of the prediction head, built alike; the last must equal the last of projection.
    prediction_norm: Whether BatchNorm follows the prediction head's last layer: true for the authors' ViTs, false for their ResNets.
    stop_patch_embed: Whether a ViT's patch projection stays at its random initial values, which keeps large batches stable (section 4.2).

    Raises UserError for values outside of these ranges, and for stop_patch_embed without a patch projection.
    """

    views = 2
    rows_per_position = 2
    couples_samples = True
    takes_chunk = True

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        temperature: float = 0.2,
        momentum: float = 0.99,
        projection: tuple[int, ...] = (4096, 4096, 256),
        prediction: tuple[int, ...] = (4096, 256),
        prediction_norm: bool = True,
        stop_patch_embed: bool = False,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature, "0.2 to 1 is usual")
        check_fraction("momentum", momentum, "0.99 to 0.999 is usual")
        self.backbone, self.chunk, self.temperature, self.momentum = backbone, chunk, temperature, momentum
        self.projector = mlp([backbone.feature_dim, *projection], last="plain-norm", key="method.projection")
        last = "plain-norm" if prediction_norm else "plain-linear"
        self.predictor = predictor(projection, prediction, last=last)
        if not backbone.provenance and isinstance(backbone.model, VisionTransformer):
            _initialise(backbone.model)
        if stop_patch_embed:
            _stop(backbone)
        self.momentum_backbone, self.momentum_projector = teacher_of(backbone), teacher_of(self.projector)

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; N is this process's share. Raises UserError for one image in all: no negatives."""
        n = batch.images.shape[1]
        if n * world() < 2:
            raise UserError("optim.batch_size: mocov3 needs at least 2 images, the others are an image's negatives")
        features = encode(self.backbone, batch.images, self.chunk)  # [2, N, D]
        projections = project(self.projector, features)
        queries = project(self.predictor, projections)
        with torch.no_grad():
            keys = project(self.momentum_projector, encode(self.momentum_backbone, batch.images, self.chunk))
            keys = torch.stack([gather(view) for view in keys])
        similarities = cosines(queries, keys)
        own = torch.arange(keys.shape[1], device=keys.device)[own_rows(n)]
        loss = info_nce(similarities, own, self.temperature)
        found = (similarities.detach().argmax(-1) == own).float().mean()
        return Step(loss, {**collapse_metrics(features, projections), "accuracy": found})

    def after_step(self, progress: float) -> None:
        """Update the momentum encoder. The authors' code does it at the start of the next step, with the same weights."""
        momentum = cosine(self.momentum, 1.0, progress)
        follow(self.momentum_backbone, self.backbone, momentum, self.skipped)
        follow(self.momentum_projector, self.projector, momentum, self.skipped)


def _stop(backbone: Backbone) -> None:
    """Freeze the patch projection."""
    patches = getattr(backbone.model, "patch_embed", None)
    if not isinstance(patches, PatchEmbed):
        raise UserError(
            f"method.stop_patch_embed: {backbone.spec['name']} has no patch projection; set it to false, or use a ViT"
        )
    patches.proj.requires_grad_(False)


@torch.no_grad()
def _initialise(vit: VisionTransformer) -> None:
    """The authors' initialisation (section 4.1, "Position embedding"; vits.py): Xavier-uniform linear layers, with queries, keys and values
    each as a layer of its own; fixed sine-cosine positions; a patch projection initialised like a linear layer.
    """
    for name, layer in vit.named_modules():
        if isinstance(layer, nn.Linear):
            for part in layer.weight.chunk(3 if name.endswith("qkv") else 1):
                nn.init.xavier_uniform_(part)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)
    if not isinstance(vit.patch_embed, PatchEmbed):
        return
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.flatten(1))  # a view: filled in place
    if vit.patch_embed.proj.bias is not None:
        nn.init.zeros_(vit.patch_embed.proj.bias)
    fix_positions(vit)
