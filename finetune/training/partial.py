"""`method.trained`: which part of the network a fine-tuning trains beside the head. What rests keeps its very bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.errors import UserError
from ...core.model.backbone import Backbone
from ...core.model.freezing import stage_numbers

_EXPECTED = "expected all, biases, head or last:N"


def check_trained(trained: str, freeze: bool, backbone: Mapping[str, Any]) -> None:
    """Raises UserError for an unknown value, and where another key says what is trained too. backbone: the section."""
    if trained not in ("all", "biases", "head") and not re.fullmatch(r"last:[1-9]\d{0,5}", trained):
        raise UserError(f"method.trained: {_EXPECTED} with a number N of blocks or stages, got {trained}")
    others = {
        "method.freeze": freeze,
        "backbone.freeze": backbone["freeze"] != "none",
        "backbone.lora": backbone["lora"] is not None,
    }
    if trained != "all" and (other := next((key for key, given in others.items() if given), None)):
        raise UserError(
            f"method.trained: {trained} is given, and {other} says too what is trained; leave one of both out"
        )


def train_part(model: Backbone, trained: str) -> None:
    """Freeze all of a backbone that `trained` (checked) leaves out, in place.

    all: nothing is frozen. head: everything is. biases: everything but the parameters whose names end in `bias` (BitFit, Zaken et al.
    2022, arXiv:2106.10199); BatchNorms keep their running statistics, as they are no biases. last:N: the stem and all but the last N
    stages, of a ViT its blocks, as timm's `group_matcher` names them; what follows the last stage is trained. Frozen parts stay in eval
    mode. Raises UserError for more stages than there are.
    """
    if trained == "head":
        model.freeze()
    elif trained == "biases":
        for name, parameter in model.model.named_parameters():
            parameter.requires_grad = name.endswith("bias")
        model.still = list[nn.Module](module for module in model.model.modules() if isinstance(module, _BatchNorm))
        model.train(model.training)
    elif trained.startswith("last:"):
        name, count = model.spec["name"], int(trained.partition(":")[2])
        _, stages = stage_numbers(model.model, name, "method.trained", "use all, biases or head")
        if count > stages:
            raise UserError(f"method.trained: {name} has {stages} stages or blocks, got {trained}")
        model.freeze("stem" if count == stages else f"stage{stages - count}")
