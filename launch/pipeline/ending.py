"""How a pipeline ends in words: what its primary contrasts show, and the command that usually comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.config.resolve import find, load
from ...core.config.yaml_file import CONFIGS
from ...core.loudness import Loudness
from ...core.run.folder import run_folder
from ..aloud import say
from ..following import command
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
    """Each primary contrast: whether it helped, did harm, or shows nothing."""
    lines = []
    for one in (table.get("contrasts") or {}).get("primary", ()):
        low, high = one["low"], one["high"]
        if low is None or high is None:
            lines.append(f"{one['label']}: {100 * one['mean']:+.1f} points; the test set is too small for an interval")
            continue
        told = "helped" if low > 0 else "did harm" if high < 0 else "made no difference that this test set can show"
        lines.append(f"{one['label']}: {told} ({100 * one['mean']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}])")
    return lines


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
