"""Handcrafted features by the names that configs use for backbones. Learned features have to beat them.

They are modules like any backbone, so the same recipe, extraction and protocols evaluate them. The keys of each, in `backbone.args`, are
the keyword-only parameters of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .colour import ColourHistogram
from .edges import CannyEdges, SobelEdges
from .hog import Hog
from .inputs import without_normalisation
from .lbp import LocalBinaryPatterns
from .pixels import Pixels
from .sift import Sift
from .surf import Surf

_CLASSES: Mapping[str, Callable[..., nn.Module]] = {
    "pixels": Pixels,
    "colour": ColourHistogram,
    "sobel": SobelEdges,
    "canny": CannyEdges,
    "lbp": LocalBinaryPatterns,
    "hog": Hog,
    "sift": Sift,
    "surf": Surf,
}


def _builder(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def build(size: int, channels: int, **args: Any) -> nn.Module:
        return without_normalisation(make(size, channels, **args), channels)

    return build


BASELINES: Mapping[str, Callable[..., nn.Module]] = {name: _builder(make) for name, make in _CLASSES.items()}
