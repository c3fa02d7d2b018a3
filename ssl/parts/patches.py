"""Images as rows of patches."""

from __future__ import annotations

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
