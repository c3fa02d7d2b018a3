"""Fixed sine-cosine positions of ViTs: always in MAE, MoCo v3 and I-JEPA, in other methods by `backbone.positions`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import UserError


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


def give_fixed_positions(model: nn.Module, name: str, weights: str) -> None:
    """Sine-cosine positions for a ViT with random weights. Raises UserError."""
    if weights != "none":
        raise UserError(f"backbone.positions: {weights} has its own positions; leave positions out")
    if not isinstance(model, VisionTransformer) or model.pos_embed is None or model.embed_dim % 4:
        raise UserError(
            f"backbone.positions: sincos is for ViTs with a position for each patch and a width that is a multiple of 4, which "
            f"{name} is not; leave positions out"
        )
    fix_positions(model)
