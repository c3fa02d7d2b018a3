"""Raw pixels as features: what a learned backbone has to beat."""

from __future__ import annotations

from torch import Tensor, nn

from .inputs import check_shape


class Pixels(nn.Module):
    """The image itself: [N, channels, size, size] in 0..1 -> [N, channels * size * size]. It has no keys."""

    def __init__(self, size: int, channels: int = 3) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.feature_dim = channels * size * size

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images, self.shape)
        return images.flatten(1)
