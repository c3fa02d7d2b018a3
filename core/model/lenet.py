"""LeNet for digits, as domain adaptation uses it: two convolutions, and the whole last map as features."""

from __future__ import annotations

from torch import Tensor, nn

from .block_network import BlockNetwork

KERNEL = 5


class LeNet(BlockNetwork):
    """Blocks of a 5x5 convolution without padding, ReLU and 2x2 max-pooling; no BatchNorm, no pooling over the last map.

    [N, channels, size, size] -> [N, D], the last map flattened. With the default widths these are the feature layers of the network for
    MNIST -> MNIST-M in Ganin et al. 2016 (arXiv:1505.07818, Figure 4a; LeCun et al. 1998): 41,000 parameters, and D = 1,200 at 32 px.

    size: Side of the images in pixels; at least 16 for two blocks.
    channels: Channels of the images.
    widths: Channels of the blocks.
    """

    def __init__(self, *, size: int, channels: int = 3, widths: tuple[int, ...] = (32, 48)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths of at least 1, got {list(widths)}")
        side = size
        for _ in widths:
            side = (side - KERNEL + 1) // 2
        if side < 1:
            raise ValueError(f"inputs of at least {smallest(len(widths))} px, got {size}")
        blocks = []
        for width in widths:
            blocks.append(nn.Sequential(nn.Conv2d(channels, width, KERNEL), nn.ReLU(inplace=True), nn.MaxPool2d(2)))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.num_features = widths[-1] * side**2

    def forward_head(self, features: Tensor) -> Tensor:
        """The last map -> [N, D], in the order of channels, rows, columns."""
        return features.flatten(1)


def smallest(blocks: int) -> int:
    """The least side of an image, in pixels, of which so many blocks leave one number a channel."""
    side = 1
    for _ in range(blocks):
        side = 2 * side + KERNEL - 1
    return side
