"""The sizes of a pruned network: the entry `pruned` of backbone.json, which says how it differs from the one that its name builds.

    {"layers": {"layer1.0.conv1": {"out_channels": 24}, "layer1.0.bn1": {"num_features": 24}, ...}, "network": {"num_features": 256}}

layers: the new sizes of each layer that has others, under torch's names for them; network: those of the network as a whole. Which channels
went is told by the weights alone, so the entry and a file of tensors rebuild the network without torch-pruning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError

PRUNED = "pruned"
"""The name of the entry, in a spec and in backbone.json."""

WIDTHS = ("num_features", "head_hidden_size", "feature_dim")
"""Attributes of networks that say how wide their features are."""

_SIZES: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.Conv2d, ("in_channels", "out_channels", "groups")),
    (nn.Linear, ("in_features", "out_features")),
    (_BatchNorm, ("num_features",)),
    (Attention, ("num_heads", "attn_dim")),
)


def sizes_of(layer: nn.Module) -> dict[str, int]:
    """The sizes of a layer that pruning may change, by torch's names; none for other kinds of layers."""
    for kind, names in _SIZES:
        if isinstance(layer, kind):
            return {name: getattr(layer, name) for name in names}
    return {}


def read_pruned(content: Any) -> dict[str, Any] | None:
    """The entry as backbone.json holds it; None for a network that is not pruned. Raises ValueError for what no version wrote."""
    if content is None:
        return None
    if not isinstance(content, Mapping) or content.keys() != {"layers", "network"}:
        raise ValueError("`pruned` does not describe sizes")
    sections = [*dict(content["layers"]).values(), content["network"]]
    if not all(isinstance(sizes, Mapping) and all(map(_is_size, sizes.values())) for sizes in sections):
        raise ValueError("`pruned` holds sizes that are no whole numbers of 1 or more")
    return {
        "layers": {str(place): dict(sizes) for place, sizes in content["layers"].items()},
        "network": dict(content["network"]),
    }


def sizes_in(described: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a spec that says how a network is pruned, by the content of its backbone.json; empty where it is not."""
    return {PRUNED: described[PRUNED]} if described.get(PRUNED) else {}


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def give_sizes(model: nn.Module, pruned: Mapping[str, Any]) -> None:
    """Give the layers of a network the sizes of an entry, in place. What is smaller holds zeros until weights are loaded.

    Raises ValueError for a layer or size that the network does not have, and for one that would be larger than it is.
    """
    modules = dict(model.named_modules())
    for place, sizes in pruned["layers"].items():
        layer = modules.get(place)
        own = {} if layer is None else sizes_of(layer)
        if layer is None or not sizes.keys() <= own.keys() or any(sizes[name] > own[name] for name in sizes):
            raise ValueError(f"layer {place} cannot have the sizes {dict(sizes)}")
        for name, size in sizes.items():
            setattr(layer, name, size)
        _shrink(layer)
    for name, width in pruned["network"].items():
        if name not in WIDTHS or not hasattr(model, name):
            raise ValueError(f"the network has no width {name}")
        with contextlib.suppress(AttributeError):  # of a property, which has the new size already
            setattr(model, name, width)


def _shrink(layer: nn.Module) -> None:
    """Give a layer's tensors the shapes that its sizes ask for."""
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(layer, nn.Conv2d):
        inputs = layer.in_channels // layer.groups
        shapes = {"weight": (layer.out_channels, inputs, *layer.kernel_size), "bias": (layer.out_channels,)}
    elif isinstance(layer, nn.Linear):
        shapes = {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}
    elif isinstance(layer, _BatchNorm):
        names = ("weight", "bias", "running_mean", "running_var")
        shapes = dict.fromkeys(names, (layer.num_features,))
    for name, shape in shapes.items():
        old: Tensor | None = getattr(layer, name)
        if old is None or old.shape == shape:
            continue
        new = old.detach().new_zeros(shape)
        setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def resized(model: nn.Module, pruned: Mapping[str, Any], where: str) -> nn.Module:
    """`give_sizes`, for an entry that a file holds. where: the file and what it is of. Raises UserError."""
    try:
        give_sizes(model, pruned)
    except ValueError as error:
        raise UserError(
            f"backbone.weights: {where} is damaged (`pruned`: {error}); restore it from a copy, or export the run again"
        ) from error
    return model


def with_sizes(before: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a network that is pruned once more. before: its entry until now, None if it had none."""
    layers: dict[str, dict[str, int]] = {
        place: dict(sizes) for place, sizes in (before or {"layers": {}})["layers"].items()
    }
    for place, sizes in new["layers"].items():
        layers[place] = {**layers.get(place, {}), **sizes}
    return {"layers": layers, "network": {**(before or {"network": {}})["network"], **new["network"]}}
