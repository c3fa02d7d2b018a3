"""Where the configs of several runs differ, key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.documents import flattened
from .records import StageRuns

_MOST_KEYS = 80
_MOST_RUNS = 24
_MOST_LETTERS = 60  # of a value


@dataclass(frozen=True)
class Settings:
    """A table. verb: of all runs. names: its columns. rows: (dotted key, a text for each run; "" where the run has no such key)."""

    verb: str
    names: list[str]
    rows: list[tuple[str, list[str]]]
    notes: list[str]


def settings_that_differ(stages: Sequence[StageRuns]) -> list[Settings]:
    """A table for each verb of which there are several experiments whose configs differ outside of `run` and `seed`."""
    tables = []
    for verb in dict.fromkeys(stage.first.verb for stage in stages):
        alike = [stage for stage in stages if stage.first.verb == verb]
        flat = [flat_config(stage.first.config) for stage in alike]
        keys = [
            key for key in dict.fromkeys(key for one in flat for key in one) if len({one.get(key) for one in flat}) > 1
        ]
        if len(alike) < 2 or not keys:
            continue
        notes = []
        if len(keys) > _MOST_KEYS:
            notes.append(f"The first {_MOST_KEYS} of {len(keys)} keys that differ.")
        if len(alike) > _MOST_RUNS:
            notes.append(f"The first {_MOST_RUNS} of {len(alike)} experiments.")
        rows = [(key, [_short(one.get(key)) for one in flat[:_MOST_RUNS]]) for key in keys[:_MOST_KEYS]]
        tables.append(Settings(verb, [stage.name for stage in alike[:_MOST_RUNS]], rows, notes))
    return tables


def flat_config(config: Mapping[str, Any]) -> dict[str, str]:
    """{dotted key: value as JSON} of everything but `run` and `seed`; folders of seeds are one, as for experiments."""
    kept = {key: value for key, value in config.items() if key not in ("run", "seed", "verb")}
    return {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in flattened(kept).items()}


def _short(value: str | None) -> str:
    if value is None:
        return ""
    text = json.loads(value) if value.startswith('"') else value
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS // 2]} … {text[-_MOST_LETTERS // 3 :]}"
