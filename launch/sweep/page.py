"""report.html of a sweep: best trial, plots and all trials, from result.json and the trials' folders."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.launchlog import warn
from ...core.run.folder import read_result
from ..report.figures import Figure
from ..report.html import provenance, write_html, yaml_text
from ..report.levels import Levels, levels_for, levels_of
from ..report.records import RunRecord, StageRuns, is_pipeline, read_run, stages_of
from ..report.tables import CAVEATS, duration, selection_sentence
from .cost import Cost, cost_in_words
from .figures import figures
from .result import BEYOND_BUDGET, begun_in_words, best_first, brief, short_names
from .search_space import by_parameter


@dataclass(frozen=True)
class SweepPage:
    """What the page shows.

    best: (name, value) pairs about the best trial; empty if all failed. rows: (number, cells, why it failed), best first.
    front: (trial, cells of `front_columns`, command) by cost; empty for a sweep without one.
    """

    title: str
    summary: str
    caveat: str
    lead: str
    best: list[tuple[str, str]]
    command: str
    figures: list[Figure]
    columns: list[str]
    rows: list[tuple[str, list[str], str]]
    facts: list[tuple[str, str]]
    config: str
    front_columns: list[str]
    front: list[tuple[str, list[str], str]]


def write_sweep_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a finished sweep to `out`, by default `folder/report.html`. Raises UserError if it has no result yet."""
    result = read_result(folder, lambda why: warn(f"WARNING: {why}"))
    if result is None:
        raise UserError(
            f"{folder} has no result.json yet; finish the sweep first, or list its trials by `rootstock runs {folder}`"
        )
    sweep = read_run(folder)
    if not isinstance(sweep.config.get("search"), dict):
        raise UserError(f"{folder / 'config.yaml'} is damaged or missing; the same sweep command writes it again")
    records = {trial["number"]: read_run(Path(trial["run"])) for trial in result["trials"] if _is_here(trial["run"])}
    search = by_parameter(sweep.config["search"])
    curves = {number: _curve(record, result["objective"]) for number, record in records.items()}
    page = SweepPage(
        title=f"Sweep: {folder.resolve().name}",
        summary=_summary(result),
        caveat=selection_sentence(result["selection"]) if result["selection"] in CAVEATS else "",
        lead=_lead(result),
        best=_best(result),
        command=_in_lines(result["best"]["command"]) if result["best"] else "",
        figures=figures(result, search, curves, _level(result, records)),
        columns=["trial", *short_names(list(search)).values(), *_measured(result), "time", "begun"],
        rows=[_row(trial, list(search)) for trial in best_first(result)],
        facts=[*_facts(result), *provenance([run for record in records.values() for run in _runs(record)])],
        config=yaml_text(sweep.config),
        front_columns=["trial", *_measured(result), *short_names(list(search)).values()],
        front=[_point(point, list(search)) for point in result.get("front", ())],
    )
    return write_html("sweep.html.j2", page, out or folder / "report.html")


def _level(result: Mapping[str, Any], records: Mapping[int, RunRecord]) -> Levels | None:
    """Chance and the most frequent class of the objective's test, by the first trial that has them."""
    for record in records.values():
        stages = stages_of(record) if is_pipeline(record) else [StageRuns("trial", [record])]
        for found in levels_of(stages).values():
            if (level := levels_for(found, result["objective"])) is not None:
                return level
    return None


def _is_here(run: str) -> bool:
    return (Path(run) / "config.yaml").is_file()


def _runs(record: RunRecord) -> list[RunRecord]:
    return [run for stage in stages_of(record) for run in stage.records] if is_pipeline(record) else [record]


def _curve(record: RunRecord, objective: str) -> list[dict[str, float]]:
    """The objective at each step at which it was measured during training; empty for a pipeline."""
    key = objective if objective.startswith("watch/") else f"eval/{objective}"
    return [{"step": row["step"], "value": row[key]} for row in record.rows if key in row]


def _measured(result: Mapping[str, Any]) -> list[str]:
    """The names of what a trial is judged by: the objective, and the cost where there is one."""
    return [result["objective"], *([result["cost"]["name"]] if result.get("cost") else [])]


def _point(point: Mapping[str, Any], keys: list[str]) -> tuple[str, list[str], str]:
    """A row of the front: (trial, cells, command)."""
    params = [brief(point["params"][key]) for key in keys]
    return str(point["number"]), [f"{point['value']:.4f}", cost_in_words(point["cost"]), *params], point["command"]


def _summary(result: Mapping[str, Any]) -> str:
    states = [trial["state"] for trial in result["trials"]]
    parts = [
        (states.count("failed"), "of them failed"),
        (states.count(BEYOND_BUDGET), "beyond the budget and not trained"),
        (sum("same_as" in trial for trial in result["trials"]), "with the values of an equal one"),
    ]
    count = ", ".join([f"{len(states)} trials", *(f"{number} {words}" for number, words in parts if number)])
    return " · ".join([count, result["sampler"]["name"], f"{duration(result['seconds'])} in all"])


def _lead(result: Mapping[str, Any]) -> str:
    """What the best value means, and what it does not."""
    if result["best"] is None:
        return "No trial has succeeded, so there is nothing to compare."
    looks = sum(trial["value"] is not None for trial in result["trials"])
    sentence = "" if result["selection"] in CAVEATS else f"{selection_sentence(result['selection'])} "
    return (
        f"{sentence}The best of {looks} values measured on the same images is optimistic: use it to compare trials, and report the best "
        "trial on images that the sweep did not use, over several seeds."
    )


def _best(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    best = result["best"]
    if best is None:
        return []
    names = short_names(list(best["params"]))
    params = [(names[key], brief(value)) for key, value in best["params"].items()]
    return [(result["objective"], f"{best['value']:.4f}"), *params, ("trial", f"{best['number']}, in {best['run']}")]


def _in_lines(command: str) -> str:
    """A shell command with one override per line."""
    words = [shlex.quote(word) for word in shlex.split(str(command))]
    return " \\\n    ".join([" ".join(words[:3]), *words[3:]])


def _row(trial: Mapping[str, Any], keys: list[str]) -> tuple[str, list[str], str]:
    """(number, cells, why it failed)."""
    values = [trial["state"] if trial["value"] is None else f"{trial['value']:.4f}"]
    if "cost" in trial:
        values.append("" if trial["cost"] is None else cost_in_words(trial["cost"]))
    params = [brief(trial["params"][key]) if key in trial["params"] else "" for key in keys]
    return (
        str(trial["number"]),
        [*params, *values, duration(trial["seconds"]), begun_in_words(trial)],
        trial.get("why", ""),
    )


def _second_objective(cost: Mapping[str, Any]) -> str:
    return Cost({key: value for key, value in cost.items() if key != "budget"}, cost["budget"]).in_words()


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    sampler = ", ".join(f"{key} {value}" if key != "name" else str(value) for key, value in result["sampler"].items())
    return [
        ("each trial", f"rootstock {result['verb']} {result['config']}"),
        ("objective", f"{result['objective']}, {result['direction']}"),
        ("selection", f"{result['selection']}. {selection_sentence(result['selection'])}"),
        ("sampler", sampler),
        *([("cost", _second_objective(result["cost"]))] if result.get("cost") else []),
        ("directory", result["run"]),
    ]
