"""Evaluation protocols on frozen features by the names that configs use; published ones are presets.

A protocol is a function of feature tensors, so features are extracted once and all protocols share them. Those of READ_TOKENS take
tokens, which are extracted for them only. A protocol's keyword-only parameters are its section of a config. What it chooses (k, C, a
learning rate) it chooses on a held-out slice of the *training* images, drawn over identities so that copies stay together, and its outcome
says so; test labels are only compared with predictions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...core.evaluate.logreg import check_C
from .attentive import AttentiveTraining, attentive, check_attentive
from .fewshot import check_fewshot, fewshot
from .knn import PRESETS, check_knn, knn, knn_dino, knn_lightly
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


def check_protocol(
    name: str, options: Mapping[str, Any], train_keys: Tensor, train_y: Tensor, classes: Sequence[str]
) -> None:
    """Raises UserError if a protocol cannot run with these options on this training set: said before features are extracted.

    options: keys of its section of the config; defaults stand for the others. train_keys, train_y: int64 [N], identities and labels.
    """
    parameters = inspect.signature(PROTOCOLS[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    settings = {**defaults, **PRESETS.get(name, {}), **options}
    if name == "knn" or name in PRESETS:
        check_knn(name, settings["k"], settings["temperature"], train_keys, train_y)
    elif name == "linear" and settings["C"] is not None:
        check_C(settings["C"], "linear")
    elif name == "attentive":
        check_attentive(AttentiveTraining(**options), train_keys, train_y)
    elif name == "fewshot":
        check_fewshot(settings["shots"], settings["draws"], train_keys, train_y, classes)
