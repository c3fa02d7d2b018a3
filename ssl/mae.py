"""MAE: a ViT encodes a quarter of the patches, and a light decoder reconstructs the others (He et al. 2022, arXiv:2111.06377)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..core.checks import MOST_LAYERS, check_count, check_vit_width
from ..core.draws import Draws
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.sincos import fix_positions, sincos
from ..core.model.vit_blocks import last_tokens
from ..core.model.vit_tokens import embed, keep_patches, plain_vit, take, transform
from ..core.numerics import wide
from .parts.patches import patchify, unpatchify
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


def mae_loss(prediction: Tensor, patches: Tensor, norm_pix: bool) -> Tensor:
    """Mean squared error over the hidden patches (section 3, "Reconstruction target").

    prediction, patches: [..., patch * patch * C], of the hidden patches only. norm_pix: standardise each patch by its own mean and
    (unbiased) variance + 1e-6. Returns a scalar.
    """
    target = wide(patches)
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (wide(prediction) - target).square().mean()


class Reconstruction(NamedTuple):
    prediction: Tensor  # [N, L, patch * patch * C]
    masked: Tensor  # bool [N, L]


class MAEDecoder(nn.Module):
    """A narrow ViT from visible tokens and mask tokens, each at its own position, to pixels."""

    positions: Tensor

    def __init__(
        self, width_in: int, patches: tuple[int, int], prefix: int, out: int, dim: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(width_in, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        # Fixed, as in the authors' code: sine-cosine positions (section 3, "Simple implementation").
        self.register_buffer("positions", sincos(patches, dim), persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, out)
        nn.init.normal_(self.mask_token, std=0.02)
        _xavier(self)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """tokens: [N, prefix + visible, D]. restore: int64 [N, L], index of each patch in the list of visible, then masked patches."""
        x = self.embed(tokens)
        prefix, visible = x[:, : self.prefix], x[:, self.prefix :]
        masks = self.mask_token.to(x.dtype).expand(len(x), restore.shape[1] - visible.shape[1], -1)
        patches = take(torch.cat([visible, masks], 1), restore)
        x = torch.cat([prefix, patches + self.positions], 1)
        return self.predict(self.norm(self.blocks(x)))[:, self.prefix :]

    def hidden(self, tokens: Tensor, keep: Tensor, wanted: Tensor) -> Tensor:
        """The prediction of `forward` for the hidden patches only, [N, H, patch * patch * C]; the other outputs are not computed.

        keep, wanted: int64 [N, visible] and [N, H], positions of the visible and of the hidden patches.
        """
        x, positions = self.embed(tokens), self.positions[0]
        places = positions[torch.cat([keep, wanted], 1)]
        masks = self.mask_token.to(x.dtype).expand(len(x), wanted.shape[1], -1)
        patches = torch.cat([x[:, self.prefix :], masks], 1) + places
        x, blocks = torch.cat([x[:, : self.prefix], patches], 1), list(self.blocks)
        for block in blocks[:-1]:
            x = block(x)
        x = last_tokens(blocks[-1], x, wanted.shape[1]) if blocks else x[:, -wanted.shape[1] :]
        return self.predict(self.norm(x))


class MAE(PretrainMethod):
    """MAE's training objective on a timm ViT: mean squared error of the hidden patches' pixels (section 3).

    A ViT without trained weights is initialised as in the authors' code.

    mask_ratio: Fraction of the patches that is hidden, between 0 and 1.
    norm_pix: Whether each target patch is standardised by its own mean and variance.
    decoder_dim: Width of the decoder, a multiple of 4 and of decoder_heads.
    decoder_depth: Number of the decoder's transformer blocks, 0 to 1,000.
    decoder_heads: Number of attention heads in a block of the decoder.

    Raises UserError for a backbone that is no plain ViT, and for sizes that do not fit.
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
        mask_ratio: float = 0.75,
        norm_pix: bool = True,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
    ) -> None:
        super().__init__()
        vit = plain_vit(backbone, "mae")
        if not 0.0 < mask_ratio < 1.0:
            raise UserError(f"method.mask_ratio: must lie between 0 and 1, got {mask_ratio}; 0.75 is published")
        check_vit_width("decoder", decoder_dim, decoder_heads)
        check_count("decoder_depth", decoder_depth, 0, MOST_LAYERS, "8 is published")
        self.backbone, self.norm_pix = backbone, norm_pix
        grid = vit.patch_embed.grid_size
        self.patch = vit.patch_embed.patch_size[0]
        self.count = grid[0] * grid[1]
        self.visible = max(1, round(self.count * (1.0 - mask_ratio)))
        if self.visible == self.count:
            raise UserError(
                f"method.mask_ratio: {mask_ratio} of {self.count} patches hides none; raise it or use smaller patches"
            )
        out = self.patch**2 * vit.patch_embed.proj.in_channels
        prefix = vit.num_prefix_tokens
        self.decoder = MAEDecoder(vit.embed_dim, grid, prefix, out, decoder_dim, decoder_depth, decoder_heads)
        if not backbone.provenance:
            _initialise(vit)

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [1, N, C, H, W]."""
        images = batch.images[0]
        keep, wanted = batch.draws.permutation("mask", self.count).tensor_split([self.visible], 1)
        tokens = self.encode(images, keep)
        prediction = self.decoder.hidden(tokens, keep, wanted)
        loss = mae_loss(prediction, take(patchify(images, self.patch), wanted), self.norm_pix)
        return Step(loss, collapse_metrics(tokens[:, self.decoder.prefix :].mean(1)))

    def reconstruct(self, images: Tensor, draws: Draws) -> Reconstruction:
        """Encode the visible patches of [N, C, H, W] and predict all of them."""
        order = draws.permutation("mask", self.count)
        keep = order[:, : self.visible]
        tokens = self.encode(images, keep)
        masked = torch.ones_like(order, dtype=torch.bool).scatter(1, keep, False)
        return Reconstruction(self.decoder(tokens, order.argsort(1)), masked)

    def encode(self, images: Tensor, keep: Tensor) -> Tensor:
        """The ViT's tokens, [N, prefix + visible, D], of the patches `keep` (int64 [N, visible]) only."""
        vit = self.backbone.model
        assert isinstance(vit, VisionTransformer)
        return transform(vit, keep_patches(embed(vit, images), keep, vit.num_prefix_tokens))

    @torch.no_grad()
    def paint(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """What the encoder saw (hidden patches gray) and the reconstruction; both [N, C, H, W], in the inputs' normalisation."""
        out = self.reconstruct(images, draws)
        target = patchify(images, self.patch)
        pixels = out.prediction.float()
        if self.norm_pix:
            pixels = pixels * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
        hidden = out.masked[:, :, None]
        height, width = images.shape[2:]
        seen = unpatchify(torch.where(hidden, torch.zeros_like(target), target), self.patch, height, width)
        return seen, unpatchify(torch.where(hidden, pixels, target), self.patch, height, width)


def _xavier(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero biases (appendix A.1, "Pre-training")."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _initialise(vit: VisionTransformer) -> None:
    """The authors' initialisation: Xavier, fixed sine-cosine positions, a patch embedding initialised like a linear layer."""
    _xavier(vit)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=0.02)
    fix_positions(vit)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.data.flatten(1))  # a view: filled in place
