"""How timm alone builds an exported network: the `timm` entry of backbone.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import ResNet
from torch import Tensor, nn

from .networks import replace_layers, stem_layers, timm_arguments
from .pruned import PRUNED, give_sizes


def timm_entry(spec: Mapping[str, Any], channels: int, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """`{name, kwargs, layers}` of a network with these weights, or `{reason}` where timm alone cannot build it.

    name, kwargs: of timm.create_model. layers: what is then replaced, {name: [class of torch.nn, its arguments]}; empty for most. Of a
    pruned network also `pruned`, the sizes that layers then get (core/model/pruned.py).
    Loading `state` strictly into that gives the features of the backbone in eval mode, bit for bit.
    """
    name = spec["name"]
    if not timm.is_model(name):
        return {"reason": f"{name} is a network of Rootstock's own, which timm does not have; load it with Rootstock"}
    kwargs = timm_arguments(spec, channels)
    try:
        json.dumps(kwargs)
        try:
            model, layers = _built("meta", kwargs, spec, channels)  # no memory, no random numbers, little time
        except RuntimeError:  # older versions of timm read numbers of tensors, which have none there
            model, layers = _built("cpu", kwargs, spec, channels)
    except (TypeError, ValueError, RuntimeError) as error:
        return {
            "reason": f"timm could not build it again from its name and arguments ({error}); load it with Rootstock"
        }
    built = {key: tensor.shape for key, tensor in model.state_dict().items()}
    odd = [
        key
        for key in built.keys() | state.keys()
        if key not in built or key not in state or built[key] != state[key].shape
    ]
    if odd:
        return {"reason": f"timm builds it with other layers ({sorted(odd)[0]}, ...); load it with Rootstock"}
    entry = {"name": name, "kwargs": kwargs, "layers": layers}
    return entry | {PRUNED: spec[PRUNED]} if PRUNED in spec else entry


def _built(
    device: str, kwargs: Mapping[str, Any], spec: Mapping[str, Any], channels: int
) -> tuple[nn.Module, dict[str, Any]]:
    """timm's network with the layers that are replaced in it, and these; random streams stay as they are."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        model = timm.create_model(spec["name"], **kwargs)
        layers: dict[str, Any] = {}
        if isinstance(model, ResNet) and spec["stem"] != "default":
            layers = stem_layers(model, channels, spec["stem"])
        replace_layers(model, layers)
        if PRUNED in spec:
            give_sizes(model, spec[PRUNED])
    return model, layers
