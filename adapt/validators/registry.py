"""The validators by the names that configs and results use, in the order of tables."""

from __future__ import annotations

from collections.abc import Mapping

from .bnm import BatchNuclearNorm
from .class_ami import ClassAMI
from .confidence import AverageThresholdedConfidence, DifferenceOfConfidences
from .contract import NEEDS, Validator
from .corr_c import ClassCorrelation
from .dev import DeepEmbeddedValidation, ImportanceWeightedValidation, NormalisedDEV
from .ensv import EnsembleAgreement
from .entropy import Entropy
from .information import Diversity, InformationMaximisation
from .last import LastIterate
from .mixval import MixVal
from .nearest_source import NearestSource
from .rankme import TargetRank
from .snd import SoftNeighborhoodDensity
from .source_validation import SourceValidation
from .transfer_score import TransferScore

_CLASSES: tuple[type[Validator], ...] = (
    LastIterate,
    SourceValidation,
    Entropy,
    Diversity,
    InformationMaximisation,
    BatchNuclearNorm,
    ClassCorrelation,
    SoftNeighborhoodDensity,
    ClassAMI,
    ImportanceWeightedValidation,
    DeepEmbeddedValidation,
    NormalisedDEV,
    MixVal,
    EnsembleAgreement,
    AverageThresholdedConfidence,
    DifferenceOfConfidences,
    TargetRank,
    NearestSource,
    TransferScore,
)
VALIDATORS: Mapping[str, Validator] = {kind.name: kind() for kind in _CLASSES}
assert all(set(one.needs) <= set(NEEDS) and one.blind_to for one in VALIDATORS.values())
