"""Whether the run in a folder is a run of this config, and which keys differ if it is not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config.yaml_file import ConfigError
from ..documents import Unreadable, read_yaml
from ..errors import UserError
from ..formats import current_keys
from .folder import CONFIG, RESULT

# Checks a config of one verb and fills in its defaults.
Complete = Callable[[Mapping[str, Any]], dict[str, Any]]


def begun(folder: Path) -> bool:
    """Whether a run has left something of its own in its folder: rows, checkpoints or a result."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", RESULT))


def of_another_config(folder: Path, verb: str, config: Mapping[str, Any], complete: Complete | None = None) -> str:
    """Why a run of this config cannot use the folder, in one sentence; "" if it can."""
    path = folder / CONFIG
    # A run that a mistake ended before it had anything to lose: its config is not worth a new folder.
    if not begun(folder) or not path.exists():
        return ""
    try:
        before, why = read_yaml(path), "it holds no mapping"
    except Unreadable as error:
        before, why = None, str(error)
    if not isinstance(before, dict):
        return (
            f"{path} is damaged ({why}), so it cannot be told what this run was; restore it, or delete it if the run was of this config, "
            "or choose another run.dir"
        )
    changed = differing(as_written_now(before, config, complete), {"verb": verb, **config})
    if changed:
        return f"{folder} holds a run of another config ({_listed(changed)}); choose another run.dir, or restore these keys (there: {path})"
    return ""


def science(verb: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of the config that made it: everything but `run`."""
    return {"verb": verb, **{key: value for key, value in config.items() if key != "run"}}


def check_origin(
    checkpoints: Path,
    before: Mapping[str, Any] | None,
    verb: str,
    config: Mapping[str, Any],
    complete: Complete | None = None,
) -> None:
    """Raises UserError if the config that made a checkpoint, its `science`, differs from the present one; None if it says nothing."""
    if before and (changed := differing(as_written_now(before, config, complete), {"verb": verb, **config})):
        raise UserError(
            f"{checkpoints} was made by another config ({_listed(changed)}); restore the checkpoints of this run, or choose another run.dir"
        )


def _listed(changed: list[tuple[str, Any, Any]]) -> str:
    return "; ".join(f"{key}: {old!r} there, {new!r} now" for key, old, new in changed)


def as_written_now(before: Mapping[str, Any], config: Mapping[str, Any], complete: Complete | None) -> dict[str, Any]:
    """The config.yaml of a run, as this version would have written it: keys under their present names, new ones with their defaults.

    config: the present config, whose `run` section is taken; complete: fills in defaults, of a config without `verb`.
    """
    known = {key: value for key, value in current_keys(before).items() if key not in ("verb", "run")}
    if complete is not None:
        # A key that no version knows stays as it is: the comparison names it.
        with contextlib.suppress(ConfigError):
            known = complete({**known, **({"run": config["run"]} if "run" in config else {})})
    return {**({"verb": before["verb"]} if "verb" in before else {}), **known}


def differing(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    """The dotted keys outside `run` whose values differ, with both values."""
    rows: list[tuple[str, Any, Any]] = []
    # Configs are compared as JSON would write them, so that a tuple equals the list that YAML reads back.
    for key in [*before, *(k for k in now if k not in before)]:
        if not path and key == "run":
            continue
        old, new = before.get(key), now.get(key)
        where = f"{path}.{key}" if path else str(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            rows += differing(old, new, where)
        elif json.dumps(old) != json.dumps(new):
            rows.append((where, old, new))
    return rows
