"""The pretraining methods by the names that configs use."""

from __future__ import annotations

from ..core.method import PretrainMethod
from ..core.registration import register
from .barlow import BarlowTwins
from .byol import BYOL
from .dino import DINO
from .dinov2 import DINOv2
from .distill import Distill
from .ibot import IBOT
from .ijepa import IJEPA
from .lejepa import LeJEPA
from .mae import MAE
from .mocov3 import MoCoV3
from .simclr import SimCLR
from .simmim import SimMIM
from .simsiam import SimSiam
from .swav import SwAV
from .vicreg import VICReg

PRETRAIN_METHODS = register(
    PretrainMethod,
    {
        "simclr": SimCLR,
        "byol": BYOL,
        "mocov3": MoCoV3,
        "simsiam": SimSiam,
        "barlow": BarlowTwins,
        "vicreg": VICReg,
        "swav": SwAV,
        "dino": DINO,
        "ibot": IBOT,
        "dinov2": DINOv2,
        "mae": MAE,
        "simmim": SimMIM,
        "ijepa": IJEPA,
        "lejepa": LeJEPA,
        "distill": Distill,
    },
)
