"""`backbone.freeze`: the first layers of a network keep their weights, and their BatchNorms and dropout stay in eval mode."""

from __future__ import annotations

import re

from torch import nn

from ..errors import UserError
from .layer_numbers import layer_numbers

EXPECTED = "expected none, stem, stage1, stage2, ... or all"


def frozen_modules(model: nn.Module, up_to: str, name: str) -> list[nn.Module]:
    """The modules of a network up to and including `up_to`, outermost first: those whose parameters all lie there.

    up_to: none, stem, stageN or all. Stem and stages are those of timm's `group_matcher`: of a ResNet layer1 to layer4, of others their
    blocks; what follows the last one, such as an EfficientNet's last convolution, a ViT's last norm or a ConvNeXt's `head.norm`, belongs
    to it. name: the network's, for errors. Raises UserError for what the network does not have.
    """
    if up_to in ("none", "all"):
        return [model] if up_to == "all" else []
    stage = re.fullmatch(r"stage([1-9]\d*)", up_to)
    if up_to != "stem" and stage is None:
        raise UserError(f"backbone.freeze: {EXPECTED}, got {up_to}")
    numbers, last = stage_numbers(model, name, "backbone.freeze", "use none or all")
    limit = int(stage[1]) if stage else 0
    if limit > last:
        raise UserError(f"backbone.freeze: {name} has stages 1 to {last}, got {up_to}")
    kept = {parameter for key, parameter in model.named_parameters() if numbers[key] <= limit}
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        parameters = list(module.parameters())
        if parameters and all(parameter in kept for parameter in parameters):
            found.append(module)
        else:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = parameter.requires_grad and parameter not in kept
            for child in module.children():
                visit(child)

    visit(model)
    return found


def stage_numbers(model: nn.Module, name: str, key: str, remedy: str) -> tuple[dict[str, int], int]:
    """(the stage of each parameter by its name, the number of the last stage); the stem's is 0, and stages count from 1.

    name: the network's, key: that which asks for stages, remedy: what to do else, all for the error. Raises UserError.
    """
    numbers, head = layer_numbers(model, name, stages=True, key=key, remedy=remedy)
    last = head - 1
    return {parameter: min(number, last) for parameter, number in numbers.items()}, last
