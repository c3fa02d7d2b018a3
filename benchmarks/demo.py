"""The demo over five seeds: run it (or what is missing of it), check its gates, and write benchmarks/demo.md beside this file.

Command: python benchmarks/demo.py [key=value ...]   (seeds=0..4 by default; `run.dir=` as for `rootstock demo`)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GATES = (
    ("SimCLR -> CDAN+E, target test", "rows", "SimCLR -> CDAN+E", "mean", 0.83),
    ("SimCLR -> CDAN+E over control", "comparisons", "both: SimCLR -> CDAN+E over control", "mean", 0.05),
    ("... its paired 95 % interval's lower end", "comparisons", "both: SimCLR -> CDAN+E over control", "low", 0.0),
    ("SSL over control, the interval's lower end", "comparisons", "SSL: SimCLR -> control over control", "low", 0.0),
)

# One seed says little: these floors only show that a run is broken.
FLOORS = (
    ("SimCLR -> CDAN+E", None, 0.78, 1.0),
    ("SimCLR -> CDAN+E", "source", 0.93, 1.0),
    ("source-only, strong augmentation", None, 0.60, 0.85),
)


def main(overrides: list[str]) -> int:
    folder, command = run_to_its_end(["demo"], "runs/demo", 5, overrides)
    table, run = made(folder)
    (HERE / "demo.md").write_text(page(table, run, " ".join(command)))
    failed = [name for name, passed, _ in gates(table) if not passed]
    print("gates failed: " + ", ".join(failed) if failed else "all gates hold")
    return 1 if failed else 0


def run_to_its_end(verb: list[str], folder: str, seeds: int, overrides: list[str]) -> tuple[Path, list[str]]:
    """Run what is missing of a pipeline; returns its folder and the command. folder, seeds: used unless the overrides name them."""
    chosen = next((o.partition("=")[2] for o in overrides if o.startswith("run.dir=")), folder)
    given = [] if any(o.startswith("seeds=") for o in overrides) else [f"seeds={seeds}"]
    words = [*verb, *given, *overrides]
    subprocess.run([sys.executable, "-m", "rootstock", *words], check=True)
    return Path(chosen), ["rootstock", *words]


def made(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A finished pipeline's result.json, and the run.json of its first stage by name."""
    first = min(folder.glob("seed-*/*/run.json"))
    return json.loads((folder / "result.json").read_text()), json.loads(first.read_text())


def gates(table: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """(name, whether it holds, its value and the floor); for a single seed only the floors that show a broken run."""
    checked = []
    if table["rows"][0]["n"] == 1:
        for label, test, low, high in FLOORS:
            row = next(row for row in table["rows"] if row["label"] == label)
            value = (row["beside"][test] if test else row)["mean"]
            figure = f"{100 * value:.1f} (between {100 * low:g} and {100 * high:g})"
            checked.append((f"{label}, {test or 'target'} test", low <= value <= high, figure))
        return checked
    for name, part, label, key, floor in GATES:
        value = next(row for row in table[part] if row["label"] == label)[key]
        above = value >= floor if key == "mean" else value > floor
        checked.append((name, above, f"{100 * value:.1f} (floor {100 * floor:g})"))
    return checked


def page(table: dict[str, Any], run: dict[str, Any], command: str) -> str:
    """The tables as Markdown, with command, machine and versions."""
    n, threads = table["rows"][0]["n"], f"OMP_NUM_THREADS={run['history'][-1]['threads']}"
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    lines = [
        "# The demo's numbers",
        "",
        f"Command: `{threads} {command}` (`{threads} python benchmarks/demo.py` runs it and writes this page). n = {n} seeds, "
        "run once, none replaced; last iterates; mean and 95 % t-interval over seeds, in per cent of test images. Differences are "
        "paired over seeds. [How to make a row again, and what its interval means](../docs/guides/checking-a-number.md).",
        "",
        f"Machine: {run['processor']}, {os.cpu_count()} CPU cores, no accelerator; {threads}, for with another number of threads sums are "
        f"added in another order. Versions: {versions}.",
        "",
        "| row | target test | source test | target, other scale | seeds |",
        "|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        beside = row.get("beside") or {}
        cells = [spread(row), *(spread(beside.get(name)) for name in ("source", "target_other_scale"))]
        lines.append(f"| {row['label']} | {' | '.join(cells)} | {' '.join(f'{100 * v:.1f}' for v in row['values'])} |")
    lines += ["", "| difference on the target test | points | seeds |", "|---|---|---|"]
    for row in table["comparisons"]:
        lines.append(
            f"| {row['label']} | {spread(row, signed=True)} | {' '.join(f'{100 * v:+.1f}' for v in row['values'])} |"
        )
    lines += ["", "| gate | figure | holds |", "|---|---|---|"]
    lines += [f"| {name} | {figure} | {'yes' if passed else 'no'} |" for name, passed, figure in gates(table)]
    return "\n".join(lines) + "\n"


def spread(row: Mapping[str, Any] | None, signed: bool = False) -> str:
    """ "84.5 [82.1, 86.9]" from fractions; the mean alone for one seed."""
    if not row or row.get("mean") is None:
        return "-"
    form = "+.1f" if signed else ".1f"
    mean = format(100 * row["mean"], form)
    return mean if row.get("low") is None else f"{mean} [{100 * row['low']:{form}}, {100 * row['high']:{form}}]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
