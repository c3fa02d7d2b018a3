"""Images as rows of patches, and the fixed positions that masked image modeling gives them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """[N, C, H, W] -> [N, L, patch * patch * C]: patches row by row, pixels row by row, channels last."""
    n, c, height, width = images.shape
    x = images.view(n, c, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, patch * patch * c)


def unpatchify(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify`: [N, L, patch * patch * C] -> [N, C, height, width]."""
    n, _, values = patches.shape
    x = patches.view(n, height // patch, width // patch, patch, patch, values // patch**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, height, width)


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
