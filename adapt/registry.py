"""The adaptation methods by the names that configs use."""

from __future__ import annotations

from ..core.method import AdaptMethod
from ..core.registration import register
from .aad import AaD
from .adabn import AdaBN
from .adamatch import AdaMatch
from .afn import AFN
from .bnm import BNM
from .cdan import CDAN
from .dan import DAN
from .dann import DANN
from .deepcoral import DeepCORAL
from .deepjdot import DeepJDOT
from .eata import EATA
from .fixmatch import FixMatch
from .jan import JAN
from .mcc import MCC
from .mcd import MCD
from .mdd import MDD
from .osbp import OSBP
from .prototypes import Prototypes
from .roid import ROID
from .shot import SHOT
from .source_only import SourceOnly
from .tent import TENT

ADAPT_METHODS = register(
    AdaptMethod,
    {
        "source_only": SourceOnly,
        "adabn": AdaBN,
        "prototypes": Prototypes,
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
        "shot": SHOT,
        "aad": AaD,
        "fixmatch": FixMatch,
        "adamatch": AdaMatch,
        "osbp": OSBP,
        "tent": TENT,
        "eata": EATA,
        "roid": ROID,
    },
)
