"""Formats of the files that outlive the version that wrote them, and the names that changed since: old runs stay good.

run.json, state.json (a run's and a checkpoint's) and backbone.json say `format: N`. A file without it has format 1; result.json has none so
far, because its first format is compared byte for byte. Whoever renames a config key or a parameter adds one line to a table here; whoever
adds a config key gives it the default that repeats the earlier behaviour. tests/formats/ holds interrupted runs of each format, and
tests/test_old_runs.py resumes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import UserError

FORMAT = 1

# Config keys that have another name now: dotted old key -> dotted new key; None for a key that is gone.
RENAMED_KEYS: dict[str, str | None] = {}
# Modules and parameters that have another name now: part of a name in a state dict, whole between its dots -> what it is called now.
RENAMED_TENSORS: dict[str, str] = {}

T = TypeVar("T")


def check_format(content: Any, where: str) -> None:
    """Raises UserError if a file was written in a later format than this version knows. where: the file, as the message names it."""
    found = content.get("format", 1) if isinstance(content, Mapping) else 1
    if not isinstance(found, int) or found > FORMAT:
        raise UserError(
            f"{where} has format {found}, and this version of Rootstock reads formats up to {FORMAT}; update Rootstock"
        )


def current_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, nested mappings of keys, with the names that its keys have now."""
    tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for old, new in RENAMED_KEYS.items():
        *path, name = old.split(".")
        section = _section(tree, path)
        if section is None or name not in section:
            continue
        value = section.pop(name)
        if new is not None:
            *path, name = new.split(".")
            target = _section(tree, path, create=True)
            assert target is not None
            target.setdefault(name, value)
    return tree


def _section(tree: dict[str, Any], path: list[str], create: bool = False) -> dict[str, Any] | None:
    for name in path:
        inner = tree.get(name)
        if not isinstance(inner, dict):
            if inner is not None or not create:
                return None
            inner = tree[name] = {}
        else:
            inner = tree[name] = dict(inner)
        tree = inner
    return tree


def current_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors by name, as a checkpoint or an export holds them, under the names that they have now."""
    return {_current_name(name): tensor for name, tensor in tensors.items()}


def _current_name(name: str) -> str:
    # Moments of an optimizer are called "parameter//moment".
    for old, new in RENAMED_TENSORS.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(?=\.|//|$)", lambda found, new=new: found[1] + new, name)
    return name
