"""The tokens of timm's ViTs: with patches left out, replaced by a mask token, or hidden from attention.

timm's forward takes whole images; masked image modeling needs its parts, and several methods the same ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from .backbone import Backbone
from .colour import eager_cpu
from .errors import UserError


def plain_vit(backbone: Backbone, who: str) -> VisionTransformer:
    """The backbone's ViT, if its tokens are square patches of the image and all of it takes part. who: the method's name.

    Raises UserError.
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
            f"data.size: {backbone.size} px do not divide into square patches of {name} ({height}x{width} px)"
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

    seen: bool [N, T]; tokens that are False are padding: no token attends to them, and what stands in their place means nothing.
    """
    x = vit.norm_pre(tokens)
    if seen is None:
        return vit.norm(vit.blocks(x))
    return vit.norm(attend(vit.blocks, x, seen))


def attend(blocks: nn.Module, tokens: Tensor, seen: Tensor) -> Tensor:
    """Blocks of a ViT on [N, T, D] where no token attends to those whose `seen`, bool [N, T], is False."""
    x, visible = tokens, seen[:, None, None, :]  # [N, heads, queries, keys]
    if eager_cpu(tokens) and all(map(packable, blocks.children())):
        pack = Pack(seen)
        x = pack.rows(tokens)
        for block in blocks.children():
            x = pack.through(block, x)
        return pack.padded(x)
    for block in blocks.children():
        assert isinstance(block, Block)
        x = block(x, attn_mask=visible)
    return x


def packable(block: nn.Module) -> bool:
    """Whether it is timm's plain block, which does all but attention to each token by itself."""
    if type(block) is not Block or type(block.attn) is not Attention or block.attn.gate is not None:
        return False
    return isinstance(block.drop_path1, nn.Identity) and isinstance(block.drop_path2, nn.Identity)


class Pack:
    """Sequences of several lengths as rows, [R, D], one after the other, so that nothing is padded: attention is given those of
    one length at a time. For where shapes may depend on what was drawn, and for blocks that are `packable`.

    index: int64 [R], for each row its token among N * T of padded sequences. asking: int64, the rows that `ask` is about.
    """

    def __init__(self, seen: Tensor, asking: Tensor | None = None) -> None:
        """seen: bool [N, T], the tokens that there are. asking: bool [N, T], some of these."""
        self.shape = seen.shape
        asking = seen if asking is None else asking
        lengths, asked = seen.sum(1), asking.sum(1)
        key = lengths * (seen.shape[1] + 1) + asked
        order = key.argsort(stable=True)
        self.index = torch.arange(seen.numel()).view_as(seen)[order][seen[order]]
        self.asking = asking.flatten()[self.index].nonzero()[:, 0]
        counts = key[order].unique_consecutive(return_counts=True)[1]
        firsts = order[counts.cumsum(0) - counts]
        self.runs: list[tuple[int, int, int]] = list(
            zip(counts.tolist(), lengths[firsts].tolist(), asked[firsts].tolist(), strict=True)
        )

    def rows(self, tokens: Tensor) -> Tensor:
        """[N, T, D] -> [R, D]."""
        return tokens.flatten(0, 1).index_select(0, self.index)

    def padded(self, rows: Tensor) -> Tensor:
        """[R, D], or what `ask` gave -> [N, T, D], zeros where nothing was given."""
        index = self.index if len(rows) == len(self.index) else self.index[self.asking]
        return rows.new_zeros(self.shape.numel(), rows.shape[1]).index_copy(0, index, rows).view(*self.shape, -1)

    def through(self, block: nn.Module, rows: Tensor, qkv: Tensor | None = None) -> Tensor:
        """A block of a ViT: [R, D] -> [R, D]. qkv: its queries, keys and values, [R, 3 * D], where they are known."""
        assert isinstance(block, Block) and isinstance(block.attn, Attention)
        projected: Tensor = block.attn.qkv(block.norm1(rows)) if qkv is None else qkv
        parts = [
            _attended(block.attn, *part.view(count, length, 3, -1).unbind(2))
            for part, (count, length, _) in zip(
                projected.split([count * length for count, length, _ in self.runs]), self.runs, strict=True
            )
        ]
        return _after_attention(block, rows, torch.cat(parts))

    def ask(self, block: nn.Module, rows: Tensor) -> Tensor:
        """What `through` would make of the rows `asking`, which alone are worked out; all of them are attended to."""
        assert isinstance(block, Block) and isinstance(block.attn, Attention)
        x = block.norm1(rows)
        queries, keys = _projected(block.attn.qkv, x.index_select(0, self.asking), x)
        parts = [
            _attended(block.attn, q.view(count, asked, -1), *kv.view(count, length, 2, -1).unbind(2))
            for q, kv, (count, length, asked) in zip(
                queries.split([count * asked for count, _, asked in self.runs]),
                keys.split([count * length for count, length, _ in self.runs]),
                self.runs,
                strict=True,
            )
        ]
        return _after_attention(block, rows.index_select(0, self.asking), torch.cat(parts))


def of_last(block: nn.Module, tokens: Tensor, count: int) -> Tensor:
    """What a block of a ViT makes of the last `count` tokens, which attend to all: [N, T, D] -> [N, count, D]. Without drop path."""
    assert isinstance(block, Block) and isinstance(block.attn, Attention)
    x = block.norm1(tokens)
    queries, keys = _projected(block.attn.qkv, x[:, -count:], x)
    out = _attended(block.attn, queries, *keys.unflatten(-1, (2, -1)).unbind(2))
    return _after_attention(block, tokens[:, -count:], out.view(len(x), count, -1))


def _projected(qkv: nn.Linear, asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of some tokens, [..., D], and keys and values of all, [..., 2 * D]."""
    width = len(qkv.weight) // 3
    q, kv = qkv.weight.split([width, 2 * width])
    biases = (None, None) if qkv.bias is None else qkv.bias.split([width, 2 * width])  # pyright: ignore[reportUnnecessaryComparison]
    return F.linear(asking, q, biases[0]), F.linear(asked, kv, biases[1])


def _attended(attn: Attention, *qkv: Tensor) -> Tensor:
    """Queries, keys and values, [N, T, D] each -> rows [N * T, D]."""
    q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in qkv)
    out = F.scaled_dot_product_attention(
        attn.q_norm(q), attn.k_norm(k), v, dropout_p=attn.attn_drop.p if attn.training else 0.0
    )
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


def _after_attention(block: Block, rows: Tensor, attended: Tensor) -> Tensor:
    """The rest of a block, [R, D] -> [R, D]."""
    assert isinstance(block.attn, Attention)
    x = rows + block.ls1(block.attn.proj_drop(block.attn.proj(block.attn.norm(attended))))
    return x + block.ls2(block.mlp(block.norm2(x)))


@torch.no_grad()
def last_attention(vit: VisionTransformer, images: Tensor) -> Tensor:
    """How much of the last block's attention each patch gets, [N, heads, h, w], as the network is.

    From the class token where the features are that token's, else on average over all patches (Caron et al. 2021,
    arXiv:2104.14294, figure 1, shows the first).
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
