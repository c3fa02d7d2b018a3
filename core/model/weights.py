"""Strict loading of safetensors files: all weights fit, or one sentence lists those that do not."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from ..errors import UserError
from ..formats import current_names
from .sizes import positions_before_patches

FC_NORM = "fc_norm"
"""The pooling of a ViT that normalises the mean over its patches, and the name of that norm in timm."""


def load_file_strictly(
    model: nn.Module,
    path: Path,
    key: str,
    classifier: str | Sequence[str] | None = None,
    options: str = "",
    pooling: str | None = None,
) -> None:
    """Load a safetensors file; position embeddings are resampled to the input size. Raises UserError naming `key`.

    classifier: layers of a classifier, which are dropped: published files have them, backbones do not. options: of `rootstock import`, by
    which it builds this very network, for the remedy. pooling: of the network; fc_norm begins new where the file has none.
    """
    tensors = read_tensors(path, key)
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    own = model.state_dict()
    tensors = {k: v for k, v in tensors.items() if k in own or not k.startswith(tuple(f"{head}." for head in heads))}
    if tensors and not own.keys() & tensors.keys():
        raise UserError(f"{key}: {path} holds {_names_of_others(own, tensors)}; {conversion_command(path, options)}")
    tensors = with_new_fc_norm(own, tensors) if pooling == FC_NORM else tensors
    load_strictly(model, tensors, f"{key}: {path}")


def with_new_fc_norm(own: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ViT whose last norm comes before pooling, for one with fc_norm: without that norm, and with its own new one.

    own: the state of the network. Tensors that have an fc_norm stay as they are.
    """
    new = {name: tensor for name, tensor in own.items() if name.startswith(f"{FC_NORM}.")}
    if not new or new.keys() & tensors.keys():
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")} | new


def conversion_command(path: Path, options: str = "") -> str:
    """What to do with a file that others published."""
    to = f"runs/{path.name.partition('.')[0] or 'imported'}"
    return f"run `rootstock import {path}{options} --to {to}`, then set backbone.weights={to} backbone.name=null"


def import_options(spec: Mapping[str, Any]) -> str:
    """Options of `rootstock import` that build the network of a backbone's spec; none where it tells the network by its weights alone."""
    if spec["stem"] != "default" or not timm.is_model(spec["name"]):
        return ""
    args = "".join(f" --args {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in spec["args"].items())
    return f" --name {spec['name']}{args}"


def _names_of_others(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    first = sorted(tensors)[0]
    prefix = next((first.removesuffix(name) for name in own if first.endswith(name)), "")
    below = f", all below {prefix}" if prefix and all(name.startswith(prefix) for name in tensors) else ""
    return f"no tensor under its name in this network ({first}, ...{below})"


def _refuse_other_channels(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], differences: Mapping[str, Sequence[str]], what: str
) -> None:
    """Raises UserError if the only difference is that the first convolution takes another number of channels."""
    odd = [(own[name].shape, tensors[name].shape) for name in differences["of another shape"]]
    if len(odd) == 1 and not differences["missing"] and not differences["unexpected"]:
        (here, there) = odd[0]
        if len(here) == len(there) == 4 and (here[0], here[2:]) == (there[0], there[2:]):
            raise UserError(
                f"{what} is for pictures of {there[1]} channels, and these have {here[1]}; give pictures of {there[1]} channels, or other "
                "weights"
            )


def read_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError naming the key."""
    try:
        return current_names(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{key}: {path} cannot be read ({error}); expected a safetensors file") from error


def load_strictly(
    model: nn.Module, tensors: dict[str, Tensor], what: str, remedy: str = "check backbone.name, stem and args"
) -> None:
    """Load or raise a UserError that lists the missing, unexpected and misshapen tensors."""
    own = model.state_dict()
    embedding = tensors.get("pos_embed")
    if embedding is not None and "pos_embed" in own and embedding.shape[1] != own["pos_embed"].shape[1]:
        grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        if grid is not None:
            prefix = positions_before_patches(model)
            side = math.isqrt(max(0, embedding.shape[1] - prefix))
            if side and side**2 + prefix == embedding.shape[1]:
                tensors = {
                    **tensors,
                    "pos_embed": resample_abs_pos_embed(embedding, list(grid), num_prefix_tokens=prefix),
                }
    differences = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape),
    }
    if any(differences.values()):
        _refuse_other_channels(own, tensors, differences, what)
        parts = [
            f"{len(v)} {k} ({', '.join(v[:3])}{', ...' if len(v) > 3 else ''})" for k, v in differences.items() if v
        ]
        raise UserError(f"{what} does not fit this architecture: {'; '.join(parts)}; {remedy}")
    model.load_state_dict(tensors)
