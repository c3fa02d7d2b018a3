"""Fixed sine-cosine positions of ViTs: always in MAE, MoCo v3 and I-JEPA, in other methods by `backbone.positions`."""

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
    """Give the ViT sine-cosine positions that are not trained, zeros for its prefix tokens.

    Does nothing if its width is not a multiple of 4.
    """
    if vit.pos_embed is None or vit.embed_dim % 4:
        return
    rows, columns = vit.patch_embed.grid_size
    prefix = vit.pos_embed.shape[1] - rows * columns
    with torch.no_grad():
        vit.pos_embed.copy_(F.pad(sincos((rows, columns), vit.embed_dim), (0, 0, prefix, 0)))
    vit.pos_embed.requires_grad = False
