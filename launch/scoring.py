"""`rootstock validators score`: every validator on the kept candidates of many finished adaptations, in one table.

No set is opened and no label is read: accuracies are those that the runs wrote after their one look.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ..adapt.scored_runs import score_runs, scores_by_run
from ..adapt.stored_runs import PACKED, StoredRun, stored_below
from ..adapt.validators.contract import Validator
from ..adapt.validators.quality import RANDOM, RULE, Costs, ValidatorQuality, validator_quality
from ..adapt.validators.registry import VALIDATORS
from ..core.config.messages import among
from ..core.errors import UserError
from ..core.evaluate.looks import merged_looks
from ..core.evaluate.statistics import Interval
from ..core.files import expanded, write_text
from ..core.printable import capital, printable
from .data import LISTED
from .report.claims import finite_or_none
from .report.markdown import markdown_table
from .report.results import looks_note
from .report.tables import number
from .runs import find_runs

_HEADS = (
    "validator",
    "Spearman",
    "95 %",
    "weighted",
    "95 %",
    "regret in a run",
    "95 %",
    "regret in a task",
    "95 %",
    "runs",
    "tasks",
    "candidates",
)
_NUMBERS = (1, 3, 5, 7, 9, 10, 11)  # columns that are aligned to the right
_BESIDE = {RULE: "default rule", RANDOM: "by chance"}


def score_validators(
    folders: Sequence[Path], names: Sequence[str], test: str | None, out: Path | None, as_json: bool, processes: int
) -> int:
    """Print the table, or write it to `out`. Returns 0. Raises UserError if there is nothing to score. processes: as in `score_runs`."""
    console = Console(stderr=True, highlight=False)
    chosen = _chosen(names)
    passed: list[str] = []
    runs = _found(folders, passed)

    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("runs", total=len(runs))
        done = partial(progress.advance, bar)
        scored = score_runs(runs, chosen, test, say=passed.append, done=done, processes=processes)
    for sentence in passed[:LISTED]:
        console.print(f"[yellow]passed over[/] {escape(printable(sentence))}", soft_wrap=True)
    if len(passed) > LISTED:
        console.print(f"and {len(passed) - LISTED} more")
    if not scored:
        raise UserError(f"{_places(folders)}: no run can be scored: {passed[0]}")
    comparing = {name for name, one in chosen.items() if one.compares}
    found = validator_quality(scored, comparing)
    left_out = _left_out([run.own.left_out for run in scored])
    looks = _looks(runs, {run.run for run in scored}, test)
    table = {
        "task": "validators",
        "runs": len(scored),
        "tasks": len({run.task for run in scored}),
        "candidates": sum(len(run.accuracies) for run in scored),
        "validators": {name: _as_json(one) for name, one in found.items()},
        "looks": looks,
        "left_out": left_out,
        "passed_over": passed,
    }
    if out is not None:
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
        whole = {**table, "scores": scores_by_run(scored)}
        text = json.dumps(whole, indent=1, allow_nan=False) + "\n" if out.suffix.lower() == ".json" else ""
        write_text(out, text or _markdown(found, left_out, folders, names, test, looks))
    if as_json:
        print(json.dumps(table, indent=1, allow_nan=False))
        return 0
    Console(highlight=False, width=None if os.isatty(1) else 200).print(_printed(found))
    console.print(_foot(looks), soft_wrap=True)
    for name, why in left_out.items():
        console.print(f"{name}: {escape(why)}", soft_wrap=True)
    return 0


def _chosen(names: Sequence[str]) -> Mapping[str, Validator]:
    for name in names:
        if name not in VALIDATORS:
            raise UserError(f"--validator {name}: no such validator{among(name, VALIDATORS)}")
    return {name: one for name, one in VALIDATORS.items() if not names or name in names}


def _found(folders: Sequence[Path], passed: list[str]) -> list[StoredRun]:
    """The runs at and below the folders, each once. Raises UserError for a folder that isn't there, and if no run kept a candidate."""
    places = [expanded(folder) for folder in folders]
    for place in places:
        if not place.exists():
            raise UserError(
                f"{place} does not exist; expected the folder of a run, or one with runs or packed runs below it"
            )
    packs = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob(f"*{PACKED}")))]
    if odd := [path for path in packs if not path.name.endswith(PACKED)]:
        raise UserError(
            f"{odd[0]} is a file; expected a folder with runs, or a packed run, whose name ends in {PACKED}"
        )
    folders_of_runs = dict.fromkeys(run.resolve() for place in places if place.is_dir() for run in find_runs(place))
    found = stored_below(iter(folders_of_runs), list(dict.fromkeys(path.resolve() for path in packs)), passed.append)
    if not found:
        why = f"{passed[0]}" if passed else "there is no finished run of `rootstock adapt` at or below it"
        raise UserError(f"{_places(folders)}: {why}")
    return found


def _places(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))


def _left_out(reasons: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """In how many runs a validator was left out, and why, by its name."""
    counted: dict[str, list[str]] = {}
    for one in reasons:
        for name, why in one.items():
            counted.setdefault(name, []).append(why)
    return {name: f"left out of {len(found)} of {len(reasons)} runs: {found[0]}" for name, found in counted.items()}


def _as_json(one: ValidatorQuality) -> dict[str, Any]:
    def interval(found: Interval | None) -> dict[str, Any] | None:
        return found and {key: finite_or_none(getattr(found, key)) for key in ("estimate", "low", "high")}

    def costs(found: Costs | None) -> dict[str, Any] | None:
        return found and dict(zip(("mean", "low", "high"), found, strict=True))

    return {
        "runs": one.runs,
        "tasks": one.tasks,
        "candidates": one.candidates,
        "spearman": interval(one.spearman),
        "weighted": interval(one.weighted),
        "regret_in_runs": costs(one.in_runs),
        "regret_in_tasks": costs(one.in_tasks),
    }


def _rows(found: Mapping[str, ValidatorQuality]) -> list[list[str]]:
    """The table, the best validator first: by its weighted correlation; rows without one last."""

    def place(name: str) -> float:
        weighted = found[name].weighted
        value = None if weighted is None else finite_or_none(weighted.estimate)
        return -2.0 if value is None else value

    rows = []
    for name in sorted(found, key=place, reverse=True):
        one = found[name]
        cells = [_BESIDE.get(name, name)]
        for interval in (one.spearman, one.weighted):
            cells += _cells(*(interval[:3] if interval else (None, None, None)), 1.0)
        for costs in (one.in_runs, one.in_tasks):
            cells += _cells(*(costs or (None, None, None)), 100.0)
        rows.append([*cells, str(one.runs), str(one.tasks), str(one.candidates)])
    return rows


def _cells(value: float | None, low: float | None, high: float | None, scale: float) -> list[str]:
    def shown(x: float) -> str:
        return number(x, scale) if scale != 1.0 else f"{x:.2f}".replace("-", "−")

    if value is None or finite_or_none(value) is None:
        return ["", ""]
    return [shown(value), "" if low is None or high is None else f"[{shown(low)}, {shown(high)}]"]


def _printed(found: Mapping[str, ValidatorQuality]) -> Table:
    printed = Table(box=None, header_style="dim", pad_edge=False)
    for column, heading in enumerate(_HEADS):
        printed.add_column(heading, justify="right" if column in _NUMBERS else "left")
    for row in _rows(found):
        printed.add_row(*map(escape, row))
    return printed


def _looks(runs: Sequence[StoredRun], scored: Collection[str], test: str | None) -> dict[str, Any]:
    """At the labels of the tests whose accuracies count, by test, of the runs that were scored."""
    named = [(run.facts.test(test) or "", run.looks) for run in runs if run.name in scored]
    return merged_looks({name: looks[name]} for name, looks in named if name in looks)


def _foot(looks: Mapping[str, Any]) -> str:
    counted = looks_note({"looks": looks}) or "looks: not counted in packed runs"
    return (
        "Correlation of ranks with the accuracy on the target within each task, over methods, seeds and checkpoints; mean over tasks, "
        "with a bootstrap interval over runs. Weighted: good candidates that rank low, and bad ones that rank high, count most "
        "(arXiv:2208.07360). Regret: points of accuracy that the pick loses against the best candidate of its run, and of its task, with "
        "t-intervals over runs and over tasks. By chance: the mean over candidates. Accuracies are those of the runs' own looks; no label "
        f"was read now. {capital(counted)}."
    )


def _markdown(
    found: Mapping[str, ValidatorQuality],
    left_out: Mapping[str, str],
    folders: Sequence[Path],
    names: Sequence[str],
    test: str | None,
    looks: Mapping[str, Any],
) -> str:
    words = ["rootstock", "validators", "score", *map(str, folders), *(f"--validator {name}" for name in names)]
    words += [f"--test {test}"] if test else []
    parts = [f"Made by `{' '.join(words)}`.", markdown_table(_HEADS, _rows(found), right=_NUMBERS), _foot(looks)]
    parts += [f"- {name}: {why}" for name, why in left_out.items()]
    return "\n\n".join(parts) + "\n"
