"""A small BatchNorm network for small pictures: the demo's backbone, quick enough to train on two CPU cores."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class SmallConv(nn.Module):
    """Four 3x3 convolutions, each with BatchNorm and ReLU: the first with a stride, max-pooling after the next two, then the mean.

    [N, channels, size, size] -> [N, widths[-1]]. size must be at least 8. About 0.13 M parameters at the default widths.
    """

    def __init__(
        self, *, size: int, channels: int = 3, widths: tuple[int, int, int, int] = (32, 64, 64, 128), stride: int = 2
    ) -> None:
        super().__init__()
        if size < 8:
            raise ValueError(f"inputs of at least 8 px, got {size}")
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            step = stride if i == 0 else 1
            layers += [nn.Conv2d(channels, width, 3, step, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            if i < 3 and (i or stride == 1):
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's naming of layers, for layer-wise rates."""
        return {"stem": r"^layers\.[01]\.", "blocks": r"^layers\.(\d+)"}
