"""The tokens of timm's ViTs: with patches left out, replaced by a mask token, or hidden from attention.

timm's forward takes whole images; methods of masked image modeling need its parts.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..errors import UserError
from ..numerics import eager_cpu
from .backbone import Backbone
from .vit_blocks import PackedSequences, is_packable


def plain_vit(backbone: Backbone, who: str) -> VisionTransformer:
    """The backbone's ViT. who: the method's name, for errors.

    Raises UserError if it is no ViT with square patches, or has pooling layers that the method would not train.
    """
    vit, name = backbone.model, backbone.spec["name"]
    if not isinstance(vit, VisionTransformer) or not isinstance(vit.patch_embed, PatchEmbed):
        what = type(vit).__name__ if not isinstance(vit, VisionTransformer) else "hybrid of convolutions and a ViT"
        raise UserError(f"method: {who} needs a ViT, {name} is a {what}; try vit_small_patch16_224")
    if vit.attn_pool is not None or not isinstance(vit.fc_norm, nn.Identity):
        raise UserError(
            f"backbone.pooling: {name} pools by layers that {who} would not train; set pooling to mean or token"
        )
    height, width = (int(side) for side in vit.patch_embed.patch_size)
    if height != width or backbone.size % height:
        raise UserError(
            f"data.size: {backbone.size} px do not divide into square patches of {name} ({height}x{width} px); choose a multiple"
        )
    return vit


def embed(vit: VisionTransformer, images: Tensor, hidden: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """[N, C, H, W] -> tokens with positions, [N, prefix + L, D], before the first block.

    hidden: bool [N, L], patches whose embedding is replaced by `mask`, of D numbers, before positions are added.
    """
    x = vit.patch_embed(images)
    if hidden is not None:
        assert mask is not None
        x = torch.where(hidden.view(*x.shape[:-1], 1), mask.to(x.dtype).view(1, -1), x)
    return vit._pos_embed(x)


def take(patches: Tensor, index: Tensor) -> Tensor:
    """The patches at `index`: [..., L, D], int64 [..., K] -> [..., K, D]."""
    return patches.gather(-2, index[..., None].expand(*index.shape, patches.shape[-1]))


def keep_patches(tokens: Tensor, keep: Tensor, prefix: int) -> Tensor:
    """[N, prefix + L, D] -> [N, prefix + K, D]: the prefix tokens and the patches `keep`, int64 [N, K]."""
    return torch.cat([tokens[:, :prefix], take(tokens[:, prefix:], keep)], 1)


def transform(vit: VisionTransformer, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
    """The ViT's blocks and final norm on embedded tokens, [N, T, D] -> [N, T, D].

    seen: bool [N, T], False for padding: no token attends to it, and its output has no meaning.
    """
    x = vit.norm_pre(tokens)
    if seen is None:
        return vit.norm(vit.blocks(x))
    return vit.norm(attend(vit.blocks, x, seen))


def attend(blocks: nn.Module, tokens: Tensor, seen: Tensor) -> Tensor:
    """Blocks of a ViT on [N, T, D] where no token attends to those whose `seen`, bool [N, T], is False."""
    if eager_cpu(tokens) and all(map(is_packable, blocks.children())):
        pack = PackedSequences(seen)
        x = pack.rows(tokens)
        for block in blocks.children():
            x = pack.through(block, x)
        return pack.padded(x)
    x, visible = tokens, seen[:, None, None, :]  # [N, heads, queries, keys]
    for block in blocks.children():
        assert isinstance(block, Block)
        x = block(x, attn_mask=visible)
    return x


@torch.no_grad()
def last_attention(vit: VisionTransformer, images: Tensor) -> Tensor:
    """The last block's attention to each patch, [N, heads, h, w], in the model's current mode.

    Attention of the class token if that is the feature (as in Caron et al. 2021, arXiv:2104.14294, figure 1), else the mean over all
    patches.
    """
    inputs: list[Tensor] = []
    block: Any = vit.blocks[-1]
    handle = block.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        vit(images)
    finally:
        handle.remove()
    attn: Any = block.attn
    n, count, _ = inputs[0].shape
    query, key, _ = attn.qkv(inputs[0]).view(n, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (attn.q_norm(query) * attn.scale @ attn.k_norm(key).transpose(-2, -1)).softmax(-1)
    prefix = vit.num_prefix_tokens
    asked = weights[:, :, :1] if vit.global_pool == "token" else weights[:, :, prefix:]
    height, width = (side // step for side, step in zip(images.shape[2:], vit.patch_embed.patch_size, strict=True))
    return asked.mean(2)[:, :, prefix:].view(n, -1, height, width)
