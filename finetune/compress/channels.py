"""Which channels of a network can only go together, by torch-pruning's dependency graph (Fang et al. 2023, arXiv:2301.12900).

Some are left alone, so that the smaller network computes exactly what the whole one computes with the missing channels set to 0:
channels over which a LayerNorm or GroupNorm averages (in a ViT and a ConvNeXt all that blocks add to), those of grouped convolutions, and
those that are cut or filled up with others. Attention goes by whole heads, whose scale depends on their width.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.errors import UserError
from ...core.model.backbone import Backbone

READER = "reader"
"""The place of what reads the features: the head, or the bottleneck before it."""

Side = Literal["out", "in"]


class UnprunableNetwork(UserError):
    """No channel of a network can go by itself, or nobody can tell which go together. why: without the key and the remedy."""

    def __init__(self, why: str) -> None:
        super().__init__(f"method.prune.macs: {why}; give method.prune.weights instead, or use another network")
        self.why = why


class Member(NamedTuple):
    """One side of a layer. units: int64 [width], the unit that each of its channels belongs to; -1 for none of them."""

    place: str  # its name in the backbone's model, or READER
    side: Side
    units: Tensor


class CoupledUnits(NamedTuple):
    """Units, each of which goes or stays in all its layers at once: channels, or heads of attention."""

    root: str  # the layer that it is named after
    units: int
    members: tuple[Member, ...]
    whole: bool  # whether units are heads: their number is not rounded


def import_torch_pruning() -> Any:
    """torch-pruning. Raises UserError where it is not installed."""
    try:
        import torch_pruning
    except ImportError as error:
        raise UserError(
            "method.prune needs torch-pruning; `pip install 'torch-pruning>=1.6'`, or give method.prune.weights, which needs none"
        ) from error
    return torch_pruning


def coupled_channels(backbone: Backbone, features: bool) -> list[CoupledUnits]:
    """What can be pruned of a backbone, in the order of its layers. features: whether the width of the features may shrink.

    Raises UnprunableNetwork for a network that cannot be traced, and for one of which nothing can be pruned.
    """
    pruning, name = import_torch_pruning(), backbone.spec["name"]
    traced = _traced(backbone)
    places = {module: place.removeprefix("model.") for place, module in traced.named_modules()}
    try:
        graph = pruning.DependencyGraph()
        images = torch.zeros(1, backbone.channels, backbone.size, backbone.size)
        with torch.enable_grad():
            graph.build_dependency(traced, images, verbose=False)
        groups = list(graph.get_all_groups())
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError) as error:
        raise UnprunableNetwork(f"torch-pruning cannot follow the channels of {name} ({error})") from error
    attending = {module for parent in traced.modules() if hasattr(parent, "num_heads") for module in parent.modules()}
    found = [
        made
        for group in groups
        if (made := _coupled(pruning, graph, group, places, attending)) is not None
        and (features or all(member.place != READER for member in made.members))
    ]
    found += [_heads(place, module) for place, module in backbone.model.named_modules() if _has_free_heads(module)]
    order = {place: number for number, place in enumerate(places.values())}
    found.sort(key=lambda one: order[one.root])
    if not found:
        raise UnprunableNetwork(
            f"no layer of {name} can be pruned by itself, since its channels are normalised or divided together"
        )
    return found


def _traced(backbone: Backbone) -> nn.Module:
    """A copy of the network with a layer that reads its features, as torch-pruning can follow it."""
    model = copy.deepcopy(backbone.model).cpu().float().requires_grad_(True)
    for module in model.modules():
        if hasattr(module, "fused_attn"):  # one operation, which hides the heads
            vars(module)["fused_attn"] = False
    with torch.random.fork_rng(devices=[]):
        reader = nn.Linear(backbone.feature_dim, 1)
    return nn.Sequential(OrderedDict([("model", model), (READER, reader)])).eval()


def _coupled(
    pruning: Any, graph: Any, group: Any, places: Mapping[nn.Module, str], attending: set[nn.Module]
) -> CoupledUnits | None:
    """A group of torch-pruning's as ours; None if it is to be left alone."""
    root = group[0].dep.target.module
    if places[root] == READER:
        return None
    count, members = graph.get_out_channels(root), list[Member]()
    for item in group.items:
        module, inward = item.dep.target.module, graph.is_in_channel_pruning_fn(item.dep.handler)
        if isinstance(module, pruning.ops._SliceOp) or module in attending:
            return None
        if module not in places:
            if isinstance(module, nn.Parameter):
                return None
            continue
        width = _width(module, inward)
        if width is None or None in item.root_idxs or max(item.idxs) >= width:  # or torch-pruning has lost their way
            return None
        units = torch.full((width,), -1, dtype=torch.int64)
        units[torch.tensor(item.idxs)] = torch.tensor(item.root_idxs)
        if len(units[units >= 0].unique()) != count:  # part of them is cut off on the way
            return None
        side: Side = "in" if inward and not isinstance(module, _BatchNorm) and not _is_depthwise(module) else "out"
        members.append(Member(places[module], side, units))
    return CoupledUnits(places[root], count, tuple(members), whole=False) if len(members) > 1 else None


def _width(module: nn.Module, inward: bool) -> int | None:
    """The channels on one side of a layer; None for a kind of layer that cannot lose some of them."""
    if isinstance(module, nn.Conv2d) and (module.groups == 1 or _is_depthwise(module)):
        return module.in_channels if inward else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if inward else module.out_features
    return module.num_features if isinstance(module, _BatchNorm) else None


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def _has_free_heads(module: nn.Module) -> bool:
    """Whether it is timm's plain attention, of which whole heads can go. Older timm takes the heads' width from the tokens."""
    if type(module) is not Attention or "attn_dim" not in vars(module) or getattr(module, "gate", None) is not None:
        return False
    return isinstance(module.norm, nn.Identity) and module.num_heads > 1


def _heads(place: str, module: nn.Module) -> CoupledUnits:
    """The heads of an attention: each has rows of queries, keys and values, and columns of the projection."""
    attention: Any = module
    heads = torch.arange(attention.num_heads).repeat_interleave(attention.head_dim)
    members = (Member(f"{place}.qkv", "out", heads.repeat(3)), Member(f"{place}.proj", "in", heads))
    return CoupledUnits(f"{place}.qkv", attention.num_heads, members, whole=True)
