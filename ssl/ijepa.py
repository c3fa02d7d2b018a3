"""I-JEPA: from a part of an image, predict a teacher's features of other parts (Assran et al. 2023, arXiv:2301.08243)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..core.checks import MOST_LAYERS, check_count, check_fraction, check_vit_width
from ..core.draws import Draws
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.ema import follow, teacher_of
from ..core.model.sincos import fix_positions, sincos
from ..core.model.vit_blocks import PackedSequences, is_packable
from ..core.model.vit_tokens import attend, embed, keep_patches, plain_vit, take, transform
from ..core.numerics import eager_cpu, wide
from ..core.train.schedules import ramp
from .parts.masks import Grid, block_sizes, keep_first, random_blocks, remove_targets, true_indices
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


def ijepa_loss(prediction: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Smooth L1 between predicted and normalised target tokens (the authors' code; section 3 of the paper has the squared error).

    prediction, targets: [N, K, T, D], K blocks of T patches. real: bool [N, K, T], False where a block is padded. The loss is averaged over
    the real patches of each block, then over blocks, then over images: each image counts the same, however large its blocks are.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        error = F.smooth_l1_loss(wide(prediction), wide(targets), reduction="none").mean(-1)
        return ((error * real).sum(-1) / real.sum(-1)).mean()


def list_length(masks: Tensor, most: int) -> int:
    """Length of the index lists of masks, bool [..., L]: that of the longest, or `most` where shapes must not depend on the data."""
    return int(masks.sum(-1).max()) if eager_cpu(masks) else most


class Predictor(nn.Module):
    """A narrow ViT over the context's tokens and a mask token for each patch of one target block at a time (section 3)."""

    positions: Tensor

    def __init__(self, width: int, grid: Grid, prefix: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.register_buffer("positions", sincos(grid, dim)[0], persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project = nn.Linear(dim, width)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, keep: Tensor, seen: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
        """Tokens of the context [N, prefix + C, D] -> predicted tokens of K target blocks [N, K, T, D].

        keep, wanted: int64 [N, C] and [N, K, T], positions of the context's and the blocks' patches. seen: bool [N, prefix + C] and
        real: bool [N, K, T], False where these lists are padded: no token attends to padding.
        """
        n, k, t = wanted.shape
        x = self.embed(tokens)
        x = torch.cat([x[:, : self.prefix], x[:, self.prefix :] + self.positions[keep]], 1)
        there = torch.cat([seen[:, None].expand(-1, k, -1), real], 2).flatten(0, 1)  # [N * K, prefix + C + T]
        if eager_cpu(tokens) and all(map(is_packable, self.blocks)):
            return self.project(self.norm(self._packed(x, wanted, there))).view(n, k, t, -1)
        asked = self.mask_token + self.positions[wanted]  # [N, K, T, d]
        x = torch.cat([x[:, None].expand(-1, k, -1, -1).to(asked.dtype), asked], 2).flatten(0, 1)
        return self.project(self.norm(attend(self.blocks, x, there)[:, -t:])).view(n, k, t, -1)

    def _packed(self, context: Tensor, wanted: Tensor, there: Tensor) -> Tensor:
        """The blocks' output without computing what is padded or unused: [N, prefix + C, d] -> [N * K, T, d].

        Before the first block the context is the same for all K target blocks, and mask tokens differ by position only, so their queries,
        keys and values are computed once. After the last block the context's output is not needed.
        """
        (n, count, _), (_, k, _) = context.shape, wanted.shape
        asking = F.pad(there[:, count:], (count, 0))
        pack = PackedSequences(there, asking)
        table = torch.cat([context.flatten(0, 1), (self.mask_token + self.positions)[0, 0].to(context.dtype)])
        own = torch.arange(n * count).view(n, 1, count).expand(-1, k, -1)
        places = torch.cat([own, n * count + wanted], 2).flatten()[pack.index]
        x, blocks = table.index_select(0, places), list(self.blocks)
        if len(blocks) > 1:
            first: Any = blocks[0]
            x = pack.through(first, x, first.attn.qkv(first.norm1(table)).index_select(0, places))
        for block in blocks[1:-1]:
            x = pack.through(block, x)
        return pack.padded(pack.attend_from(blocks[-1], x))[:, count:]


class IJEPA(PretrainMethod):
    """I-JEPA's training objective. The target encoder is exported, which the authors evaluate.

    The authors draw one block size for a whole batch and cut all lists to the batch's fewest patches. An image's loss would then depend
    on its neighbours and on the number of processes. Here each image draws its own block size, shorter lists are padded, and no token
    attends to padding: nothing is cut off, and each image counts the same. `max_context` saves the time that the cut saves.

    targets: Number of target blocks that are predicted, 1 to 1,000.
    target_scale: Smallest and largest area of a target block, as fractions of the image above 0 and up to 1.
    target_aspect: Smallest and largest height / width of a target block, above 0.
    context_scale: Smallest and largest area of the square context block, as fractions of the image above 0 and up to 1.
    min_context: Smallest number of context patches, 1 or more. Where the targets leave fewer, the last targets stay in the context.
    max_context: Largest number of context patches, min_context or more, chosen at random from those of the image; null keeps all.
    predictor_dim: Width of the predictor, a multiple of 4 and of predictor_heads.
    predictor_depth: Number of the predictor's transformer blocks, 1 to 1,000. The authors use 6 for a ViT-B and 12 for larger ViTs.
    predictor_heads: Number of attention heads in a block of the predictor. The authors use the backbone's.
    momentum: Momentum of the target encoder's moving average at the start, from 0 to 1; it rises linearly to 1.

    Raises UserError for a backbone that is no plain ViT, and for values that do not fit.
    """

    views = 1
    rows_per_position = 1
    hides_patches = True
    couples_samples = False

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        targets: int = 4,
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] = (0.85, 1.0),
        min_context: int = 10,
        max_context: int | None = None,
        predictor_dim: int = 384,
        predictor_depth: int = 6,
        predictor_heads: int = 12,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        vit = plain_vit(backbone, "ijepa")
        check_count("targets", targets, 1, MOST_LAYERS, "4 is published")
        for key, given, most in (
            ("target_scale", target_scale, 1.0),
            ("target_aspect", target_aspect, float("inf")),
            ("context_scale", context_scale, 1.0),
        ):
            if not 0.0 < given[0] <= given[1] <= most:
                raise UserError(
                    f"method.{key}: expected the smallest and the largest, above 0{' and up to 1' if most == 1.0 else ''}, "
                    f"got {list(given)}"
                )
        check_vit_width("predictor", predictor_dim, predictor_heads)
        check_count("predictor_depth", predictor_depth, 1, MOST_LAYERS, "6 is published for a ViT-B")
        check_fraction("momentum", momentum, "0.996 is published")
        self.grid: Grid = vit.patch_embed.grid_size
        self.targets, self.momentum = targets, momentum
        self.min_context, self.max_context = min_context, max_context
        self.target_scale, self.target_aspect, self.context_scale = target_scale, target_aspect, context_scale
        self.most_context, self.most_target = self._lengths()
        if not backbone.provenance:
            _initialise(vit)
        self.student, self.backbone = backbone, teacher_of(backbone)
        self.predictor = Predictor(
            vit.embed_dim, self.grid, vit.num_prefix_tokens, predictor_dim, predictor_depth, predictor_heads
        )

    def _lengths(self) -> tuple[int, int]:
        """The largest numbers of patches of a context and of a target block. Raises UserError if a context can be too small."""
        rows, columns = self.grid
        wanted = block_sizes(self.grid, self.target_scale, self.target_aspect)
        areas = [height * width for height, width in wanted]
        most, least = 0, rows * columns
        for height, width in block_sizes(self.grid, self.context_scale, (1.0, 1.0)):
            # All blocks lie in the same (rows - 1) x (columns - 1) cells, so context and target overlap by at least this much.
            overlap = min(max(0, h + height - rows + 1) * max(0, w + width - columns + 1) for h, w in wanted)
            stays_whole = height * width - max(areas) < self.min_context
            most = max(most, height * width - (0 if stays_whole else overlap))
            least = min(least, height * width)
        if self.min_context < 1 or least < self.min_context:
            raise UserError(
                f"method.min_context: expected 1 to {least} patches (the smallest context block has {least} of {rows} x "
                f"{columns} patches), got {self.min_context}; change it, or use smaller patches"
            )
        if self.max_context is None:
            return most, max(areas)
        if self.max_context < self.min_context:
            raise UserError(
                f"method.max_context: expected method.min_context ({self.min_context}) or more, got {self.max_context}"
            )
        return min(most, self.max_context), max(areas)

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [1, N, C, H, W]."""
        images = batch.images[0]
        context, targets = self.masks(batch.draws)
        with torch.no_grad():
            tokens, features = self.teach(images)
        keep, seen = true_indices(context, list_length(context, self.most_context))
        wanted, real = true_indices(targets, list_length(targets, self.most_target))
        answers = take(tokens[:, None].expand(-1, self.targets, -1, -1), wanted)
        loss = ijepa_loss(self.predict(images, keep, seen, wanted, real), answers, real)
        sizes = {"context_patches": context.sum(1), "target_patches": targets.sum(2)}
        return Step(
            loss, {**collapse_metrics(features), **{name: count.float().mean() for name, count in sizes.items()}}
        )

    def masks(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Which patches are context, bool [N, L], and which are in each target block, bool [N, K, L]."""
        targets = random_blocks(draws.stream("target"), self.grid, self.targets, self.target_scale, self.target_aspect)
        block = random_blocks(draws.stream("context"), self.grid, 1, self.context_scale, (1.0, 1.0))[:, 0]
        context = remove_targets(block, targets, self.min_context).flatten(1)
        if self.max_context is not None:
            context = keep_first(context, draws.permutation("kept", context.shape[1]), self.max_context)
        return context, targets.flatten(2)

    def teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The target encoder's normalised patch tokens [N, L, D] and features [N, D], of whole images."""
        vit = self.backbone.model
        assert isinstance(vit, VisionTransformer)
        tokens = transform(vit, embed(vit, images))
        with torch.autocast(images.device.type, enabled=False):
            patches = wide(tokens[:, vit.num_prefix_tokens :])
            return F.layer_norm(patches, patches.shape[-1:]), vit.forward_head(tokens, pre_logits=True)

    def predict(self, images: Tensor, keep: Tensor, seen: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
        """The predictor's tokens for the patches `wanted`, from the student's encoding of the patches `keep`: [N, K, T, D]."""
        vit = self.student.model
        assert isinstance(vit, VisionTransformer)
        prefix = vit.num_prefix_tokens
        seen = F.pad(seen, (prefix, 0), value=True)  # prefix tokens belong to the context
        tokens = transform(vit, keep_patches(embed(vit, images), keep, prefix), seen)
        return self.predictor(tokens, keep, seen, wanted, real)

    def after_step(self, progress: float) -> None:
        """Update the target encoder."""
        follow(self.backbone, self.student, ramp(self.momentum, 1.0, progress, over=1.0), self.skipped)


def _initialise(vit: VisionTransformer) -> None:
    """What the authors' initialisation changes of timm's: fixed sine-cosine positions, a patch embedding like the linear layers."""
    fix_positions(vit)
    nn.init.trunc_normal_(vit.patch_embed.proj.weight, std=0.02)
    if vit.patch_embed.proj.bias is not None:
        nn.init.zeros_(vit.patch_embed.proj.bias)
