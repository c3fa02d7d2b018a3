"""Sine-cosine positions of ViTs, that need no training: MAE, MoCo v3 and I-JEPA start with them, other methods by a key."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


def sincos(grid: tuple[int, int], dim: int) -> Tensor:
    """Two-dimensional sine-cosine positions, [1, L, dim]."""
    return build_sincos2d_pos_embed(list(grid), dim=dim)[None]


def fix_positions(vit: VisionTransformer) -> None:
    """Give the ViT sine-cosine positions that are not trained, and zeros to its prefix tokens; a width that is no multiple of 4
    keeps its own."""
    if vit.pos_embed is None or vit.embed_dim % 4:
        return
    rows, columns = vit.patch_embed.grid_size
    prefix = vit.pos_embed.shape[1] - rows * columns
    with torch.no_grad():
        vit.pos_embed.copy_(F.pad(sincos((rows, columns), vit.embed_dim), (0, 0, prefix, 0)))
    vit.pos_embed.requires_grad = False
