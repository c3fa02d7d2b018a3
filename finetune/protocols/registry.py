"""Evaluation protocols on frozen features by the names that configs use; published ones are presets.

A protocol is a function of feature tensors, so features are extracted once and all protocols share them. Those of READ_TOKENS take
tokens, which are extracted for them only. A protocol's keyword-only parameters are its section of a config. What it chooses (k, C, a
learning rate) it chooses on a held-out slice of the *training* features, and its outcome says so; test labels are only compared with
predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .attentive import attentive
from .fewshot import fewshot
from .knn import knn, knn_dino, knn_lightly
from .linear import linear, logreg
from .outcome import Outcome

PROTOCOLS: Mapping[str, Callable[..., Outcome]] = {
    "knn": knn,
    "knn-lightly": knn_lightly,
    "knn-dino": knn_dino,
    "linear": linear,
    "logreg": logreg,
    "attentive": attentive,
    "fewshot": fewshot,
}
READ_TOKENS = frozenset({"attentive"})
