"""The classifier that a fine-tuning begins with: a new head on the network, or that of an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import UserError
from ...core.model.backbone import Backbone
from ...core.model.classifier import Classifier, read_head
from ...core.model.heads import Structure, initialise_head
from .losses import ClassLoss


def first_classifier(
    model: Backbone, classes: Sequence[str], method: Mapping[str, Any], weights: str, criterion: ClassLoss
) -> Classifier:
    """A new head on the network, or that of the classifier in `weights`. Raises UserError."""
    if not method["keep_head"]:
        new = Classifier(model, classes, method["dropout"], criterion.head or Structure())
        initialise_head(new.head, method["head_init"], method["head_std"])
        return new
    structure = read_head(weights).structure
    if structure.extra:
        raise UserError(
            f"method.keep_head: the classifier of {weights} has an output for unknown images, which finetune has no labels for; "
            "leave keep_head out"
        )
    if criterion.head not in (None, structure):
        raise UserError(
            f"method.keep_head: the classifier of {weights} has {structure.in_words()}, and method.loss: {method['loss']['name']} needs "
            f"{criterion.head.in_words()}; leave keep_head out"
        )
    found = Classifier(model, classes, method["dropout"], structure)
    found.load_head(weights)
    return found
