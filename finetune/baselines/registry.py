"""Handcrafted features by the names that configs use for backbones: what learned ones have to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .hog import Hog, Pixels


def pixels(size: int, channels: int) -> nn.Module:
    """Raw pixels in 0..1."""
    return _unnormalised(Pixels(size))


def hog(size: int, channels: int, **args: Any) -> nn.Module:
    """Histograms of oriented gradients; args: cell, orientations."""
    return _unnormalised(Hog(size, **args))


def _unnormalised(model: nn.Module) -> nn.Module:
    """Marked like a timm model that wants its pixels as they are."""
    config: Any = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    model.pretrained_cfg = config
    return model


BASELINES: Mapping[str, Callable[..., nn.Module]] = {"pixels": pixels, "hog": hog}
