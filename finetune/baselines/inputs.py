"""What baselines share: they take pixels in 0..1, of one size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def without_normalisation(model: nn.Module, channels: int) -> nn.Module:
    """Mark a model like a timm model whose inputs are not normalised."""
    config: Any = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    model.pretrained_cfg = config
    return model


def check_shape(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless images are [N, *shape]."""
    if images.shape[1:] != shape:
        raise ValueError(f"expected images [N, {', '.join(map(str, shape))}], got {tuple(images.shape)}")
