"""The adaptation methods by the names that configs use."""

from __future__ import annotations

from ..core.method import AdaptMethod, register
from .adabn import AdaBN
from .cdan import CDAN
from .dann import DANN
from .mcd import MCD
from .source_only import SourceOnly

ADAPT_METHODS = register(
    AdaptMethod,
    {
        "source_only": SourceOnly,
        "adabn": AdaBN,
        "dann": DANN,
        "cdan": CDAN,
        "mcd": MCD,
    },
)
