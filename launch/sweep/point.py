"""The network of a point of a search, before it has been trained."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Untrained(NamedTuple):
    """A network that takes pictures [N, channels, size, size], with its head where its verb trains one. macs: of a picture."""

    network: nn.Module
    channels: int
    size: int
    macs: int
