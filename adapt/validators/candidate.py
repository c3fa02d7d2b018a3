"""What a validator may look at: the outputs of a candidate model. No field holds a label of the target, so none can leak.

All outputs are those of eval mode, in evaluation's view, over the whole set or the same sample of it for every candidate. Rows may lie
in any order: where a validator needs one (pairs, random starts), it takes that of the images' content (`by_content`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# (first, second: int64 [P], rows of the target; share) -> logits [P, K] of the images share * first + (1 - share) * second, mixed as the
# network sees them, after normalisation.
MixedForward = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True, eq=False)
class SourceOutputs:
    """A candidate on labelled source images that were held out from training. Raises ValueError for shapes that don't fit."""

    features: Tensor  # float [M, D], what the head sees
    logits: Tensor  # float [M, K]
    labels: Tensor  # int64 [M], in 0..K-1
    keys: Tensor  # int64 [M], identities of the images (`Images.keys`)

    def __post_init__(self) -> None:
        """Check the shapes."""
        _check_rows("source", self.features, self.logits, self.keys)
        if self.labels.shape != self.keys.shape:
            raise ValueError(f"source: labels {tuple(self.labels.shape)} of {len(self.keys)} images")


@dataclass(frozen=True, eq=False)
class TargetOutputs:
    """A candidate on target images. There is no field for a label. Raises ValueError for shapes that don't fit."""

    features: Tensor  # float [N, D]
    logits: Tensor  # float [N, K]
    keys: Tensor  # int64 [N]
    units: Tensor | None = None  # int64 [N], equal for what no split may tear apart (`Images.units`); None: `keys`

    def __post_init__(self) -> None:
        """Check the shapes."""
        _check_rows("target", self.features, self.logits, self.keys)
        _check_units("target", self.units, self.keys)


@dataclass(frozen=True, eq=False)
class SourceFeatures:
    """A candidate's features of source images that it was trained on, which density ratios need. Raises ValueError for other shapes."""

    features: Tensor  # float [L, D]
    keys: Tensor  # int64 [L]
    units: Tensor | None = None  # int64 [L], as of `TargetOutputs`

    def __post_init__(self) -> None:
        """Check the shapes."""
        _check_rows("training source", self.features, self.features, self.keys)
        _check_units("training source", self.units, self.keys)


@dataclass(frozen=True, eq=False)
class CandidateModel:
    """One model that may be chosen: a checkpoint of a run, or the last state of one of several runs on the same data.

    What is None was not computed, or is not there; a validator that needs it is left out.
    """

    name: str
    step: int  # completed steps of its training
    target: TargetOutputs
    source: SourceOutputs | None = None
    trained: SourceFeatures | None = None
    weight: Tensor | None = None  # float [K, D], of a linear head
    mixed: MixedForward | tuple[float, float] | None = None  # or what `mixval.mixed_consistency` found with it

    @property
    def classes(self) -> int:
        """K."""
        return self.target.logits.shape[1]

    @property
    def held_out(self) -> SourceOutputs:
        """The held-out source. Raises ValueError where there is none."""
        if self.source is None:
            raise ValueError(f"candidate {self.name} has no held-out source")
        return self.source

    def has(self, need: str) -> bool:
        """Whether this part of the evidence is there: "target", "source", "trained", "weight" or "mixed"."""
        return getattr(self, need) is not None


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax of [N, K] in float64: a mean over images doesn't depend on their order then, but for rounding at 1e-16."""
    return logits.double().log_softmax(1)


def by_content(keys: Tensor, rows: Tensor) -> Tensor:
    """The order of rows, int64 [N], by the images' identities, and among copies by their features: whatever the order that they came in.

    keys: int64 [N]; rows: [N, D].
    """
    order = keys.argsort(stable=True)
    sorted_keys = keys[order]
    starts = [0, *((sorted_keys[1:] != sorted_keys[:-1]).nonzero()[:, 0] + 1).tolist(), len(keys)]
    if len(starts) == len(keys) + 1:
        return order
    data: Any = rows.detach().cpu().numpy()
    groups = (order[start:end].tolist() for start, end in itertools.pairwise(starts))
    ordered = [sorted(group, key=lambda row: np.ascontiguousarray(data[row]).tobytes()) for group in groups]
    return torch.tensor([row for group in ordered for row in group], dtype=torch.int64)


def _check_units(what: str, units: Tensor | None, keys: Tensor) -> None:
    if units is not None and units.shape != keys.shape:
        raise ValueError(f"{what}: units {tuple(units.shape)} of {len(keys)} images")


def _check_rows(what: str, features: Tensor, logits: Tensor, keys: Tensor) -> None:
    if features.ndim != 2 or logits.ndim != 2 or keys.ndim != 1 or not len(features) == len(logits) == len(keys) > 0:
        raise ValueError(
            f"{what}: features {tuple(features.shape)}, outputs {tuple(logits.shape)} and keys {tuple(keys.shape)} must be [N, D], "
            "[N, K] and [N] of one or more images"
        )
