"""The description of an exported backbone, backbone.json, found in the folder of a run or of an export, and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import UserError
from ..files import expanded
from ..formats import check_format
from ..manifest import MANIFEST, exported_anew, guard
from .pruned import PRUNED, read_pruned
from .weights import conversion_command

WEIGHTS, DESCRIPTION, SEEN = "backbone.safetensors", "backbone.json", "seen.safetensors"
HALF = (0.5, 0.5, 0.5)
DESCRIBED = ("name", "args", "size", "stem", "pooling", "feature_dim", "mean", "std", "provenance")


def read_description(weights: str) -> dict[str, Any]:
    """backbone.json of an exported run, with `path`: the folder that it was found in. Raises UserError."""
    root = expanded(weights)
    for folder in (root / "backbone", root / "classifier", root):
        # The manifest of `root` itself may be that of a run, which has no description there.
        if (folder / DESCRIPTION).is_file() or (folder != root and (folder / MANIFEST).exists()):
            guard(folder, (DESCRIPTION,), "backbone.weights")
            try:
                content = json.loads((folder / DESCRIPTION).read_text())
                described = {**{key: content[key] for key in DESCRIBED}, "path": str(folder)}
                described[PRUNED] = read_pruned(content.get(PRUNED))  # earlier versions did not write it
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                raise UserError(
                    f"backbone.weights: {folder / DESCRIPTION} is damaged ({error!r}); export the run again"
                ) from error
            check_format(content, str(folder / DESCRIPTION))
            return described
    if root.is_file():
        raise UserError(
            f"backbone.weights: {weights} is no run's folder; expected none, timm, a .safetensors file or the folder of a run; if others "
            f"published this file, {conversion_command(root)}"
        )
    if again := exported_anew(root):
        raise UserError(f"backbone.weights: {weights} has lost its backbone/; restore it from a copy, or {again}")
    what = "holds no finished backbone/ (is the run finished?)" if root.is_dir() else "does not exist"
    raise UserError(
        f"backbone.weights: {weights} {what}; expected none, timm, a .safetensors file or the folder of a run"
    )


def normalisation_of(
    model: nn.Module,
    described: Mapping[str, Any],
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Sequence[float], Sequence[float]]:
    """(mean, std) of the inputs: as given, else the run's, else timm's for the model, else 0.5. Raises UserError."""
    config = getattr(model, "pretrained_cfg", None) or {}
    own_mean, own_std = (described.get(key, config.get(key, HALF)) for key in ("mean", "std"))
    for key, given in (("mean", mean), ("std", std)):
        if given is not None and (len(given) != channels or (key == "std" and min(given) <= 0.0)):
            raise UserError(
                f"backbone.{key}: expected {channels} numbers{' above 0' if key == 'std' else ''}, one a channel, got {list(given)}"
            )
    return mean or own_mean, std or own_std
