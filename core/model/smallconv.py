"""A small BatchNorm network for small pictures: the demo's backbone, quick enough to train on two CPU cores."""

from __future__ import annotations

from torch import nn

from .block_network import BlockNetwork


class SmallConv(BlockNetwork):
    """Four blocks of a 3x3 convolution, BatchNorm and ReLU; the first has stride 2, max-pooling follows the second and third.

    [N, channels, size, size] -> [N, widths[-1]], the mean over the last map. About 0.1 M parameters at the default widths.

    size: Side of the images in pixels, at least 8.
    channels: Channels of the images.
    widths: Channels of the four blocks.
    """

    def __init__(self, *, size: int, channels: int = 3, widths: tuple[int, int, int, int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        if size < 8:
            raise ValueError(f"inputs of at least 8 px, got {size}")
        if not widths or min(widths) < 1:
            raise ValueError(f"widths of at least 1, got {list(widths)}")
        blocks = []
        for i, width in enumerate(widths):
            pool: list[nn.Module] = [nn.MaxPool2d(2)] if i in (1, 2) else []
            convolution = nn.Conv2d(channels, width, 3, stride=1 if i else 2, padding=1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *pool))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.num_features = widths[-1]
