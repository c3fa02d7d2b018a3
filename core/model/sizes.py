"""What is said of an input size that a network does not suit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import UserError
from ..files import expanded
from ..launchlog import warn


def trained_size(model: nn.Module, weights: str, described: Mapping[str, Any]) -> int | None:
    """The size in pixels at which weights were trained; None for random ones, and where nothing tells it.

    A run says it (described: its backbone.json), timm says it of its own weights, and a file by the grid of its position embeddings.
    """
    if described:
        return described.get("size")
    if weights == "timm":
        sides = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (None,)
        return sides[-1]
    return _size_of_positions(model, weights) if weights.endswith(".safetensors") else None


def _size_of_positions(model: nn.Module, weights: str) -> int | None:
    """The size that a file's square grid of position embeddings is for; None without one, and if it can't be read, which loading says."""
    side = _patch_side(model)
    try:
        with safe_open(expanded(weights), framework="pt") as file:
            shape = file.get_slice("pos_embed").get_shape() if "pos_embed" in file.keys() else []  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    if side is None or len(shape) != 3:
        return None
    patches = shape[1] - positions_before_patches(model)
    grid = math.isqrt(max(0, patches))
    return grid * side if grid and grid**2 == patches else None


def positions_before_patches(model: nn.Module) -> int:
    """How many of a ViT's position embeddings are of class token and registers."""
    return 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 1))


def _patch_side(model: nn.Module) -> int | None:
    patches: Any = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = patches[0] if isinstance(patches, tuple | list) else patches
    return side if isinstance(side, int) else None


def say_size(model: nn.Module, name: str, size: int, trained: int | None) -> None:
    """Warn of a size, in pixels, that leaves a border unseen, or at which the weights were not trained. trained: of `trained_size`.

    Raises UserError for a size below that of a patch.
    """
    side = _patch_side(model)
    if side is not None and size < side:
        raise UserError(
            f"data.size: {name} cuts pictures into patches of {side} px, so {size} px hold none; take {side} or more"
        )
    if side is not None and size % side:
        fitting = [n * side for n in (size // side, size // side + 1)]
        warn(
            f"WARNING: data.size: {name} cuts pictures into patches of {side} px, so of {size} px a border of {size % side} px is not "
            f"seen; take {' or '.join(map(str, fitting))}"
        )
    if trained is not None and trained != size:
        warn(
            f"WARNING: data.size: {size} px are shown to a network that was trained at {trained} px, where objects have other sizes; "
            f"data.size={trained} shows it what it knows"
        )
