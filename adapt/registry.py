"""The adaptation methods by the names that configs use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from .adabn import AdaBN
from .cdan import CDAN
from .dann import DANN
from .source_only import SourceOnly

METHODS: Mapping[str, Callable[..., nn.Module]] = {
    "source_only": SourceOnly,
    "adabn": AdaBN,
    "dann": DANN,
    "cdan": CDAN,
}
