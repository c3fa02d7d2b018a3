"""How a pipeline ends in words: what its primary contrasts show, and the command that usually comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.config.resolve import find, load
from ...core.config.yaml_file import CONFIGS
from ...core.evaluate.definitions import definition_of
from ...core.loudness import Loudness
from ...core.run.folder import run_folder
from ..aloud import say
from ..following import command
from ..report.claims import claim_words
from ..report.tables import is_fraction
from .sections import pipeline

ENOUGH_SEEDS = 3  # of which an interval says something
DEMO = "demo.yaml"


def end_pipeline(path: str, overrides: Sequence[str], table: Mapping[str, Any]) -> None:
    """Print the verdict, and unless -q was given the next command. table: the pipeline's result.json."""
    config = load(path, pipeline, [override for override in overrides if not override.startswith("stages.")])
    folder = run_folder(config["run"]["dir"])
    for line in pipeline_verdict(table, folder):
        say(line, Loudness.QUIET)
    say(f"next: {after_pipeline(path, overrides, table, folder)}")


def pipeline_verdict(table: Mapping[str, Any], folder: Path) -> list[str]:
    """The primary contrasts in sentences, and how many rows over how many seeds there are."""
    seeds, rows = _seeds(table), len(table["rows"])
    counted = f"{rows} row{'s' * (rows != 1)} over {len(seeds)} seed{'s' * (len(seeds) != 1)}, in {folder / 'table.md'}"
    return [*contrast_sentences(table), counted]


def contrast_sentences(table: Mapping[str, Any]) -> list[str]:
    """Each primary contrast, after Holm's method: whether it helped, did harm or shows nothing; of another claim, whether it is shown."""
    lines = []
    for one in (table.get("contrasts") or {}).get("primary", ()):
        fraction, definition = is_fraction(one["metric"], []), definition_of(one["metric"])
        unit, shown = (" points", _points) if fraction else ("", _plain)
        if one["low"] is None or one["high"] is None:
            told = f"{shown(one['mean'])}{unit}; the test set is too small for an interval"
        elif one["claim"] != "differs":
            told = claim_words(one, unit, shown)
        else:
            better = (one["mean"] > 0) == (definition is None or definition.better == "higher")
            word = ("helped" if better else "did harm") if one["holds"] else "no difference is shown"
            told = f"{word} ({shown(one['mean'])}{unit} [{shown(one['low'])}, {shown(one['high'])}])"
        lines.append(f"{one['label']}: {told}")
    return lines


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _plain(value: float) -> str:
    return f"{value:+.4g}"


def after_pipeline(path: str, overrides: Sequence[str], table: Mapping[str, Any], folder: Path) -> str:
    """More seeds, where there are too few for an interval; else the page."""
    seeds = _seeds(table)
    if not seeds or len(seeds) >= ENOUGH_SEEDS or seeds != list(range(len(seeds))):
        return command("report", str(folder))
    others = [override for override in overrides if not override.startswith("seeds=")]
    verb = ["demo"] if find(path) == CONFIGS / DEMO else ["run", path]
    return command(*verb, *others, seeds=ENOUGH_SEEDS)


def _seeds(table: Mapping[str, Any]) -> list[int]:
    return sorted({seed for row in table["rows"] for seed in row["seeds"]})
