"""What baselines share: they take pixels in 0..1, of one size, and most of them in gray."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import UserError

# Rec. 601, as OpenCV and scikit-image's older versions have it.
LUMA = (0.299, 0.587, 0.114)


def without_normalisation(model: nn.Module, channels: int) -> nn.Module:
    """Mark a model like a timm model whose inputs are not normalised."""
    config: Any = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    model.pretrained_cfg = config
    return model


def check_shape(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless images are [N, *shape]."""
    if images.shape[1:] != shape:
        raise ValueError(f"expected images [N, {', '.join(map(str, shape))}], got {tuple(images.shape)}")


def to_gray(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, 1, H, W]: luma (Rec. 601) of three channels, of other numbers their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def to_levels(gray: Tensor) -> Tensor:
    """float in 0..1 -> uint8, rounded: what libraries for 8-bit pictures take."""
    return (gray * 255).round().clamp(0, 255).to(torch.uint8)


def by_opencv(cv2: Any, images: Tensor, work: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """What `work` makes of the gray levels of each image, uint8 [H, W], one after the other, on as many threads as torch has.

    images: [N, C, H, W] in 0..1. The result is stacked, on the device of the images.
    """
    cv2.setNumThreads(torch.get_num_threads())
    gray = to_levels(to_gray(images.float()))[:, 0].cpu().numpy()
    return torch.from_numpy(np.stack([work(image) for image in gray])).to(images.device)


def whole_cells(who: str, key: str, size: int, cell: int | None, parts: int) -> int:
    """The side of square cells in pixels. cell: as given; None for the largest that fits, up to a `parts`-th of the side.

    Raises UserError for a cell that does not divide the side.
    """
    if cell is None:
        cell = max(divisor for divisor in range(1, max(1, size // parts) + 1) if not size % divisor)
    if cell < 1 or size % cell:
        fitting = [str(side) for side in range(1, size + 1) if not size % side]
        raise UserError(
            f"backbone.args.{key}: {who} needs whole cells, and cells of {cell} px don't fit images of {size} px; give {key} as "
            f"{', '.join(fitting)}"
        )
    return cell


def at_least(who: str, key: str, value: float, least: float, usual: str) -> None:
    """Raises UserError for a value of `backbone.args` below its least."""
    if not value >= least or not math.isfinite(value):
        raise UserError(f"backbone.args.{key}: {who} needs {least:g} or more, got {value}; {usual} is usual")


def opencv(who: str) -> Any:
    """The module cv2. who: the baseline, for the message. Raises UserError where it is missing."""
    try:
        import cv2
    except ImportError:
        raise UserError(
            f"backbone.name: {who} needs OpenCV; `pip install 'rootstock[handcrafted]'` or `pip install opencv-python-headless`, or choose "
            "another baseline, such as hog"
        ) from None
    return cv2
