"""What `rootstock explain` found, before it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ...core.evaluate.counts import Bools
from ...core.evaluate.trained import TrainedRun
from ...core.images.images import Images
from ...core.model.classifier import Classifier
from ...finetune.explain.methods import Explainer
from ...finetune.explain.nearest import Neighbour
from .measured import Measures


class Explained(NamedTuple):
    """Everything that is written down. rows: the pictures with maps, on the page first; shown: how many of them are on the page."""

    trained: TrainedRun
    classifier: Classifier
    images: Images
    labels: Tensor | None  # int64 [N] of all pictures, numbers of outputs
    target: Tensor  # int64 [N] of all pictures
    probability: Tensor  # float64 [N] of all pictures, of the target
    rows: list[int]
    shown: int
    made: list[Explainer]
    lacking: list[str]
    maps: Mapping[str, Tensor]  # [len(rows), h, w]
    constant: Mapping[str, list[int]]
    measures: Mapping[str, Measures]
    masks: Mapping[int, Bools]
    tolerance: float
    neighbours: list[list[Neighbour]]  # of the pictures on the page
    train: Images | None
