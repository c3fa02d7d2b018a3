"""What networks of our own share, whose layers are a row of blocks: the methods by which timm's models are asked, too."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class BlockNetwork(nn.Module):
    """`blocks` in order, and then `forward_head`, which makes features [N, num_features] of the last map."""

    blocks: nn.Sequential
    num_features: int

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, [N, C, h, w]; timm's models have a method of this name."""
        return self.blocks(images)

    def forward_head(self, features: Tensor) -> Tensor:
        """The last map -> [N, num_features]: the mean over its places, unless a network does another thing."""
        return features.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(self, images: Tensor, indices: list[int] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The last map, and those of the blocks `indices` (None: all), as timm's models give them."""
        found = []
        for number, block in enumerate(self.blocks):
            images = block(images)
            if indices is None or number in indices:
                found.append(images)
        return images, found

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as timm's `group_matcher` names them, for layer-wise learning rates: a block is a layer."""
        return {"stem": r"^blocks\.0", "blocks": [(r"^blocks\.(\d+)", None)]}
