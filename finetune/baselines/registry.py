"""Handcrafted features by the names that configs use for backbones. Learned features have to beat them.

They are modules like any backbone, so the same recipe, extraction and protocols evaluate them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .hog import Hog
from .inputs import without_normalisation
from .pixels import Pixels


def build_pixels(size: int, channels: int) -> nn.Module:
    """Raw pixels in 0..1."""
    return without_normalisation(Pixels(size, channels), channels)


def build_hog(size: int, channels: int, **args: Any) -> nn.Module:
    """Histograms of oriented gradients; args: the keys of `Hog`."""
    return without_normalisation(Hog(size, channels, **args), channels)


BASELINES: Mapping[str, Callable[..., nn.Module]] = {"pixels": build_pixels, "hog": build_hog}
