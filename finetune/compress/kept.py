"""The channels that stay, layer by layer, and the network that is left of another one with them alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.errors import UserError
from ...core.model.backbone import Backbone
from ...core.model.classifier import Classifier
from ...core.model.pruned import PRUNED, WIDTHS, give_sizes, sizes_of, with_sizes
from .channels import READER, CoupledUnits, Side
from .importance import layers_to_score

EQUAL = 1e-4  # of the largest feature

Kept = Mapping[str, Mapping[Side, Tensor]]
"""By the name of a layer and its side: the channels that stay, int64 ascending. Sides that lose none are left out."""


def kept_channels(groups: Sequence[CoupledUnits], units: Sequence[Tensor]) -> dict[str, dict[Side, Tensor]]:
    """The channels that stay with these units of each group."""
    masks: dict[tuple[str, Side], Tensor] = {}
    for group, kept in zip(groups, units, strict=True):
        gone = torch.ones(group.units + 1, dtype=torch.bool)
        gone[kept], gone[-1] = False, False  # the last is for channels of no unit, -1
        for member in group.members:
            stays = ~gone[member.units]
            place = (member.place, member.side)
            masks[place] = masks[place] & stays if place in masks else stays
    found: dict[str, dict[Side, Tensor]] = {}
    for (place, side), stays in masks.items():
        if not stays.all():
            found.setdefault(place, {})[side] = stays.nonzero()[:, 0]
    return found


def sizes_with(model: nn.Module, kept: Kept) -> dict[str, Any]:
    """The sizes of the layers with these channels alone, as `pruned` of core/model/pruned.py holds them; without those of the network."""
    modules = dict(model.named_modules())
    layers: dict[str, dict[str, int]] = {}
    for place, sides in kept.items():
        if place == READER:
            continue
        layer, counts = modules[place], {side: len(rows) for side, rows in sides.items()}
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            layers[place] = dict.fromkeys(("in_channels", "out_channels", "groups"), counts["out"])
        elif isinstance(layer, _BatchNorm):
            layers[place] = {"num_features": counts["out"]}
        else:
            kind = "channels" if isinstance(layer, nn.Conv2d) else "features"
            layers[place] = {f"{side}_{kind}": count for side, count in counts.items()}
        parent = modules[place.rpartition(".")[0]]
        if isinstance(parent, Attention) and place.endswith(".qkv") and "out" in counts:
            width = counts["out"] // 3
            layers[place.rpartition(".")[0]] = {"num_heads": width // parent.head_dim, "attn_dim": width}
    return {"layers": layers, "network": {}}


@torch.no_grad()
def keep_channels(classifier: Classifier, kept: Kept) -> None:
    """Take all other channels out of a classifier, in place; the spec of its backbone says so. Raises UserError if it would compute another
    function than the whole network with these channels set to 0."""
    backbone, whole = classifier.backbone, copy.deepcopy(classifier)
    model, layers = backbone.model, layers_to_score(classifier)
    entry = sizes_with(model, kept)
    smaller = dict(model.state_dict())
    for place, sides in kept.items():
        for name in ("weight", "bias", "running_mean", "running_var") if place != READER else ():
            if (tensor := smaller.get(f"{place}.{name}")) is not None:
                smaller[f"{place}.{name}"] = _narrowed(layers[place], tensor, sides)
    give_sizes(model, entry)
    model.load_state_dict(smaller)
    if (columns := kept.get(READER, {}).get("in")) is not None:
        reader: Any = layers[READER]
        reader.weight = nn.Parameter(reader.weight.detach()[:, columns].clone(), reader.weight.requires_grad)
        reader.in_features = backbone.feature_dim = len(columns)
    entry["network"] = _new_widths(backbone, whole.backbone.feature_dim)
    give_sizes(model, {"layers": {}, "network": entry["network"]})
    backbone.spec[PRUNED] = with_sizes(backbone.spec.get(PRUNED), entry)
    _check_equal(classifier, whole, kept)


def _narrowed(layer: nn.Module, tensor: Tensor, sides: Mapping[Side, Tensor]) -> Tensor:
    """The part of a weight, bias or statistic that stays."""
    if "out" in sides:
        tensor = tensor[sides["out"]]
    if "in" in sides and tensor.ndim > 1:
        tensor = tensor[:, sides["in"]]
    assert sizes_of(layer)
    return tensor.clone()


def _new_widths(backbone: Backbone, before: int) -> dict[str, int]:
    """The network's attributes that say how wide its features are, where they have changed; some say it of the last map.

    before: width of the features until now.
    """
    model: Any = backbone.model
    own = {name: width for name in WIDTHS if isinstance(width := getattr(model, name, None), int)}
    new = {name: backbone.feature_dim for name, width in own.items() if width == before}
    if own.get("num_features", before) != before:
        found = model.forward_features(torch.zeros(1, backbone.channels, backbone.size, backbone.size))
        new["num_features"] = found.shape[1]
    return {name: width for name, width in new.items() if width != own[name]}


@contextmanager
def zeroed_elsewhere(classifier: Classifier, kept: Kept) -> Iterator[None]:
    """Within it, each layer of a whole network reads 0 in the place of the channels that do not stay."""
    hooks, layers = [], layers_to_score(classifier)
    for place, sides in kept.items():
        if "in" not in sides:
            continue
        layer: Any = layers[place]
        stays = torch.zeros(layer.weight.shape[1], device=layer.weight.device)
        stays[sides["in"]] = 1.0
        stays = stays[:, None, None] if isinstance(layer, nn.Conv2d) else stays

        def mask(module: nn.Module, inputs: tuple[Tensor, ...], stays: Tensor = stays) -> tuple[Tensor, ...]:
            return (inputs[0] * stays, *inputs[1:])

        hooks.append(layer.register_forward_pre_hook(mask))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_equal(classifier: Classifier, whole: Classifier, kept: Kept) -> None:
    """Raises UserError if the network with these channels alone is not the whole one with all others set to 0."""
    backbone = classifier.backbone
    shape = (2, backbone.channels, backbone.size, backbone.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mode = classifier.training
    try:
        with zeroed_elsewhere(whole, kept):
            expected = whole.eval().backbone(images)[:, kept.get(READER, {}).get("in", slice(None))]
        found = classifier.eval().backbone(images)
        equal = bool(((found - expected).abs().max() <= EQUAL * expected.abs().max()).item())
    except RuntimeError:
        equal = False
    classifier.train(mode)
    if not equal:
        raise UserError(
            f"method.prune.macs: {backbone.spec['name']} without some channels does not compute what it computes with these set to 0, so "
            "it cannot be pruned by channels; give method.prune.weights instead, or use another network"
        )
