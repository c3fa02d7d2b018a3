"""The number of each parameter's layer, from the embedding up: for rates that fall from layer to layer (`optim.layer_decay`), and for
what is frozen or trained alone (`backbone.freeze`, `method.trained`).

Numbers are BEiT's (Bao et al. 2022, arXiv:2106.08254; MAE's code has the same): what makes tokens is 0, block i counted from 0 is i + 1,
and what follows the last block, its norm included, has the head's number. timm's own groups give that norm the last block's number, and
where a model's patterns leave it out, such as `fc_norm` or ConvNeXt's `head.norm`, a number of its own, which moves all layers below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from timm.models import group_parameters
from torch import nn

from ..errors import UserError

WITH_THE_BLOCK_BEFORE = 99999  # timm's sign for it in a pattern


def layer_numbers(
    model: nn.Module, name: str, stages: bool = False, key: str = "optim.layer_decay", remedy: str = ""
) -> tuple[dict[str, int], int]:
    """(number by name of a parameter, number of the head).

    name: the model's, key: of the config, and remedy: what to do else (leave the key out), all for the error.

    stages: whether a layer is a stage of the model (layer1 to layer4 of a ResNet, stages of a ConvNeXt or Swin) and not a residual block;
    of a ViT it is a block either way. Raises UserError for a model that does not name its layers.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        remedy = remedy or f"leave {key.rpartition('.')[2]} out"
        raise UserError(f"{key}: {name} does not name its layers; {remedy}")
    patterns = matcher(coarse=stages)
    groups: Any = group_parameters(model, patterns, reverse=True)
    named = {key: _kind(patterns, key) for key in groups}
    order = [key for key, _ in model.named_parameters()]
    body = [key for key in order if named[key] == "layer"]
    place = {group: number for number, group in enumerate(sorted({int(groups[key]) for key in body}))}
    numbers = {key: place[int(groups[key])] for key in body}
    head = len(place)
    return {
        key: numbers[key] if key in numbers else _outside(model, order, key, named, numbers, head) for key in order
    }, head


def _outside(
    model: nn.Module, order: list[str], key: str, named: Mapping[str, str], numbers: Mapping[str, int], head: int
) -> int:
    """The number of a parameter that no pattern of a block names."""
    place = order.index(key)
    below = [numbers[other] for other in order[:place] if other in numbers]
    above = [numbers[other] for other in order[place:] if other in numbers]
    if above:  # tokens and norms before the first block; layers between blocks
        return max(below) if below and max(below) > 0 else 0
    if named[key] == "after" and not _is_norm(model, key):  # such as the last convolution of an EfficientNet
        return head - 1
    return head


def _kind(patterns: Mapping[str, Any] | Callable[[str], Any], key: str) -> str:
    """layer, after (what timm counts to the layer before it) or none, by the first pattern that names the parameter."""
    if not isinstance(patterns, Mapping):
        return "layer"
    for found in patterns.values():
        for pattern, suffix in [(found, None)] if isinstance(found, str) else found or []:
            if re.match(pattern, key):
                return "after" if suffix and suffix[-1] == WITH_THE_BLOCK_BEFORE else "layer"
    return "none"


def _is_norm(model: nn.Module, key: str) -> bool:
    owner = model.get_submodule(key.rpartition(".")[0])
    return all(parameter.ndim == 1 for parameter in owner.parameters(recurse=False))
