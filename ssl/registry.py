"""The pretraining methods by the names that configs use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from .byol import BYOL
from .mae import MAE
from .simclr import SimCLR

METHODS: Mapping[str, Callable[..., nn.Module]] = {"simclr": SimCLR, "byol": BYOL, "mae": MAE}
