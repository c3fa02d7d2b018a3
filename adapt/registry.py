"""The adaptation methods by the names that configs use."""

from __future__ import annotations

from ..core.method import AdaptMethod, register
from .adabn import AdaBN
from .afn import AFN
from .bnm import BNM
from .cdan import CDAN
from .dan import DAN
from .dann import DANN
from .deepcoral import DeepCORAL
from .deepjdot import DeepJDOT
from .eata import EATA
from .jan import JAN
from .mcc import MCC
from .mcd import MCD
from .mdd import MDD
from .osbp import OSBP
from .roid import ROID
from .source_only import SourceOnly
from .tent import TENT

ADAPT_METHODS = register(
    AdaptMethod,
    {
        "source_only": SourceOnly,
        "adabn": AdaBN,
        "dann": DANN,
        "cdan": CDAN,
        "mcc": MCC,
        "bnm": BNM,
        "dan": DAN,
        "jan": JAN,
        "deepcoral": DeepCORAL,
        "afn": AFN,
        "mdd": MDD,
        "deepjdot": DeepJDOT,
        "mcd": MCD,
        "osbp": OSBP,
        "tent": TENT,
        "eata": EATA,
        "roid": ROID,
    },
)
