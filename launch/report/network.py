"""What the page says of the network that a run has left: how large it is, and what was taken out of it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_EXPORTS = ("classifier", "backbone")  # the first holds the second's weights, too
_WEIGHTS = ("backbone.safetensors", "bottleneck.safetensors", "head.safetensors")
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")
_MB = 1e6


def network_facts(run: Path, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, words) for the facts of a run; empty where its weights were not kept, or cannot be read, and nothing was pruned."""
    found = [("network", words)] if (words := _size(run)) else []
    pruned = result.get("pruned")
    if isinstance(pruned, Mapping) and (words := _pruned(pruned)):
        found.append(("pruned", words))
    return found


def _size(run: Path) -> str:
    files = next((found for folder in _EXPORTS if (found := _files(run / folder))), [])
    try:
        count = sum(_parameters(file) for file in files)
        size = sum(file.stat().st_size for file in files)
    except (OSError, SafetensorError):
        return ""
    return f"{count:,} parameters, {size / _MB:,.2f} MB in files of weights" if files else ""


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in _WEIGHTS if (folder / name).is_file()]


def _parameters(file: Path) -> int:
    with safe_open(file, framework="np") as tensors:
        names = [name for name in tensors.keys() if not name.endswith(_NO_PARAMETERS)]  # noqa: SIM118
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


def _pruned(pruned: Mapping[str, Any]) -> str:
    zeros, of_weights = pruned.get("zeros"), pruned.get("of_weights")
    if isinstance(zeros, int) and isinstance(of_weights, int) and of_weights:
        return f"{zeros:,} of {of_weights:,} weights are 0 ({zeros / of_weights:.1%})"
    before, after = (pruned.get(when) for when in ("before", "after"))
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return ""
    try:
        left, of = after["macs"], before["macs"]
        counted = f"{left / 1e6:,.1f} of {of / 1e6:,.1f} million multiply-adds a picture are left ({left / of:.1%})"
        return f"{counted}, and {after['parameters']:,} of {before['parameters']:,} parameters of the backbone"
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return ""
