"""Blocks of a ViT that compute only the tokens that are needed, and take sequences of several lengths without padding.

They give timm's results up to rounding (sums in another order); tests compare both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


def is_plain(block: nn.Module) -> bool:
    """Whether it is timm's plain block, which treats each token separately except in attention.

    Sharded blocks have another class, and recomputed blocks another forward: both must be called as a whole.
    """
    return (
        type(block) is Block
        and "forward" not in vars(block)
        and type(block.attn) is Attention
        and getattr(block.attn, "gate", None) is None  # older timm has no gates
    )


def is_packable(block: nn.Module) -> bool:
    """Whether it is a plain block without drop path, which draws one number for a whole image."""
    return is_plain(block) and isinstance(block.drop_path1, nn.Identity) and isinstance(block.drop_path2, nn.Identity)


def asks_for_one(vit: nn.Module) -> bool:
    """Whether a ViT's features are its first token, and its last block is one that `first_token` can compute for it only."""
    if type(vit) is not VisionTransformer or vit.global_pool != "token" or vit.attn_pool is not None:
        return False
    last: Any = vit.blocks[-1] if len(vit.blocks) else None
    return not vit.grad_checkpointing and is_plain(last) and type(last.attn.qkv) is nn.Linear


def first_token(vit: VisionTransformer, images: Tensor) -> Tensor:
    """timm's forward of a ViT that `asks_for_one`, [N, C, H, W] -> [N, D], without the last block's other tokens."""
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    x = _of(vit.blocks[-1], vit.blocks[:-1](x), slice(0, 1))
    return vit.forward_head(vit.norm(x))


def pooled(model: nn.Module, images: Tensor, quick: bool) -> Tensor:
    """The model's forward, [N, C, H, W] -> [N, D]. quick: by `first_token`, where that will do; else timm's own, to the same bits."""
    if quick and asks_for_one(model):
        assert isinstance(model, VisionTransformer)
        return first_token(model, images)
    return model(images)


class PackedSequences:
    """Sequences of several lengths as rows, [R, D], one after the other, without padding: attention takes the sequences of one length
    together. Shapes depend on the lengths, so it is not for compiled code; only for blocks that are `is_packable`.

    index: int64 [R], each row's place among the N * T tokens of the padded sequences. asking: int64, the rows that `attend_from`
    computes.
    """

    def __init__(self, seen: Tensor, asking: Tensor | None = None) -> None:
        """seen: bool [N, T], False for padding. asking: bool [N, T], the tokens that `attend_from` computes; None: all."""
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
        """[R, D], or the output of `attend_from`, -> [N, T, D] with zeros elsewhere."""
        index = self.index if len(rows) == len(self.index) else self.index[self.asking]
        return rows.new_zeros(self.shape.numel(), rows.shape[1]).index_copy(0, index, rows).view(*self.shape, -1)

    def through(self, block: nn.Module, rows: Tensor, qkv: Tensor | None = None) -> Tensor:
        """A block of a ViT: [R, D] -> [R, D]. qkv: its queries, keys and values, [R, 3 * D]; None: computed from `rows`."""
        assert isinstance(block, Block) and isinstance(block.attn, Attention)
        projected: Tensor = block.attn.qkv(block.norm1(rows)) if qkv is None else qkv
        parts = [
            _attended(block.attn, *part.view(count, length, 3, -1).unbind(2))
            for part, (count, length, _) in zip(
                projected.split([count * length for count, length, _ in self.runs]), self.runs, strict=True
            )
        ]
        return _after_attention(block, rows, torch.cat(parts))

    def attend_from(self, block: nn.Module, rows: Tensor) -> Tensor:
        """The block's output for the `asking` rows only; keys and values come from all rows."""
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


def last_tokens(block: nn.Module, tokens: Tensor, count: int) -> Tensor:
    """A ViT block's output for the last `count` tokens only; keys and values come from all: [N, T, D] -> [N, count, D]."""
    if not is_plain(block):
        return block(tokens)[:, -count:]
    return _of(block, tokens, slice(tokens.shape[1] - count, None))


def _of(block: nn.Module, tokens: Tensor, some: slice) -> Tensor:
    assert isinstance(block, Block) and isinstance(block.attn, Attention)
    x = block.norm1(tokens)
    queries, keys = _projected(block.attn.qkv, x[:, some], x)
    out = _attended(block.attn, queries, *keys.unflatten(-1, (2, -1)).unbind(2))
    return _after_attention(block, tokens[:, some], out.view(*queries.shape[:2], -1))


def _projected(qkv: nn.Linear, asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of the tokens `asking`, [..., D]; keys and values of the tokens `asked`, [..., 2 * D]."""
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
    """The part of a block after attention, [..., D] -> [..., D]."""
    assert isinstance(block.attn, Attention)
    x = rows + block.drop_path1(block.ls1(block.attn.proj_drop(block.attn.proj(block.attn.norm(attended)))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
