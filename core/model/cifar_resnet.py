"""The residual networks for small images, with or without their shortcuts: the same layers, weights and cost, so that only these differ."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .block_network import BlockNetwork


class CifarResNet(BlockNetwork):
    """The 6n + 2 layers of He et al. 2016 (arXiv:1512.03385, section 4.2): a 3x3 convolution, and three stages of n residual blocks.

    [N, channels, size, size] -> [N, widths[-1]], the mean over the last map. Depth 20 has 0.27 M parameters. Shortcuts are the paper's
    option A, which has no parameters: where a stage begins, every second pixel, and zeros for the channels that are new. Without them
    it is the paper's plain network.

    size: Side of the images in pixels, at least 4.
    channels: Channels of the images.
    depth: Layers with weights, the classifier included: 6n + 2, such as 20, 32, 44, 56 or 110.
    widths: Channels of the three stages.
    shortcut: Whether the shortcuts are there.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int = 3,
        depth: int = 20,
        widths: tuple[int, int, int] = (16, 32, 64),
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        if size < 4:
            raise ValueError(f"inputs of at least 4 px, got {size}")
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"a depth of 6n + 2, such as 20 or 56, got {depth}")
        if len(widths) != 3 or min(widths) < 1 or list(widths) != sorted(widths):
            raise ValueError(f"three widths of at least 1, none below the one before, got {list(widths)}")
        first = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = [first]
        before = widths[0]
        for stage, width in enumerate(widths):
            for number in range((depth - 2) // 6):
                blocks.append(Block(before, width, 2 if stage and not number else 1, shortcut))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.num_features = widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm: ReLU(shortcut(x) + f(x)), or ReLU(f(x)) without the shortcut."""

    def __init__(self, before: int, width: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.new, self.shortcut = stride, width - before, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, h, w] -> [N, width, h / stride, w / stride], rounded up."""
        found = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.shortcut:
            kept = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
            found = found + (F.pad(kept, (0, 0, 0, 0, 0, self.new)) if self.new else kept)
        return F.relu(found, inplace=True)
