"""Pipelines: stages that use each other's results, over several seeds; each stage is a run in `DIR/seed-S/STAGE`.

Finished stages are not run again, so an interrupted pipeline resumes, and seeds and stages can be added later. Several commands may
run different seeds in one folder at the same time; a last command with all seeds then writes the table.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...core.distributed import rank
from ...core.files import write_text
from ...core.loudness import Loudness, loudness
from ...core.manifest import write_record
from ...core.run.folder import make_folder, read_result, run_folder, write_config
from ..report.answers import read_answers
from ..report.claims import stages_shown, tasks_of
from ..report.contrasts import AnswersOf, difference_over_images, over_images, primary_contrasts
from ..report.gains import gain_of
from ..report.markdown import gain_lines, pipeline_markdown
from ..report.negative import Baselines, baselines_of, mark_negative_transfer, negative_lines
from ..report.oracles import DIAGNOSTIC, ORACLE, mark_oracles
from ..report.page import write_report
from ..report.priors import HEAD, priors_cell, priors_of
from ..report.records import read_run
from ..report.results import averaged, compare, looks_note, main_metric, summarise, test_of, value_of
from ..report.tables import interval, is_fraction, number
from .checks import rows_named, sides_of, subtracted
from .contrasts import declare, declared_contrasts
from .plan import STAGE_VERBS, StageJob, Validate, domains_of, found_again, inputs_file, plan_pipeline, recorded_inputs
from .preflight import Build, check_buildable


class Execute(Protocol):
    """Run or resume one verb and return its result.json."""

    def __call__(self, verb: str, config: str, overrides: list[str], /, quiet: bool = ...) -> dict[str, Any]: ...


def run_pipeline(
    path: str | Path,
    overrides: Sequence[str],
    execute: Execute,
    validate: Validate,
    verbs: Collection[str] = STAGE_VERBS,
    build: Build | None = None,
) -> dict[str, Any]:
    """Run the unfinished stages, seed by seed, then write `result.json` and `report.html`; returns the result.

    overrides: `seeds=5`, `run.dir=...`, `stages.NAME.KEY=VALUE`. validate(verb, config, overrides): resolves a stage's config or
    raises UserError. build: builds a stage without running it, so that all are checked first. Raises ConfigError with all mistakes at
    once, before the first stage runs.
    """
    config, jobs = plan_pipeline(path, overrides, validate, verbs)
    if build is not None:
        check_buildable(path, jobs, build)
    folder = run_folder(config["run"]["dir"])
    console = Console(stderr=True, highlight=False, quiet=rank() != 0 or loudness() is Loudness.QUIET)
    if rank() == 0:
        make_folder(folder)
        write_config(folder, found_again(config, path), shared=True)
    declared = declare(folder, declared_contrasts(config["report"]), jobs) if rank() == 0 else None
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in config["stages"]}
    for count, job in enumerate(jobs):
        where = f"seed {job.seed}  {count % len(results) + 1:2d}/{len(results)}  [bold]{escape(job.name)}[/]  [dim]{job.verb}"
        result = _finished(job)
        console.print(where if result is None else f"{where}, finished before")
        if result is not None and rank() == 0 and not inputs_file(job).exists():
            write_record(inputs_file(job), recorded_inputs(job), shared=True)
        if result is None:
            if rank() == 0:
                job.dir.parent.mkdir(parents=True, exist_ok=True)
                write_record(inputs_file(job), recorded_inputs(job), shared=True)
            result = execute(job.verb, job.config, job.overrides, quiet=True)
        _check_metrics(job.name, result, config["report"]["rows"])
        results[job.name].append({**result, "seed": job.seed})
    domains = {job.name: domains_of(job.resolved) for job in jobs}
    baselines = baselines_of({job.name: job.resolved for job in reversed(jobs)})  # of the first seed
    answers = _answers_of(jobs) if rank() == 0 else None
    inputs = {job.name: tuple(job.inputs) for job in jobs}
    table = tabulate(config["report"], results, domains, inputs, baselines, answers)
    if answers is not None:
        if declared is not None:
            table |= {"contrasts": {**declared, "primary": _judged(config["report"], table["rows"], answers)}}
        write_record(folder / "result.json", table, shared=True)
        write_text(folder / "table.md", pipeline_markdown(table, f"rootstock run {path}"), shared=True)
        page = write_report([folder], folder / "report.html")
        for printed in printed_tables(table):
            console.print(printed)
        for line in (*negative_lines(table["rows"]), *gain_lines(table.get("gains") or [])):
            console.print(escape(line), soft_wrap=True)
        console.print(f"report: {escape(str(page))}", soft_wrap=True)
    return table


def tabulate(
    report: Mapping[str, Any],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    domains: Mapping[str, Sequence[str]] = {},
    inputs: Mapping[str, Sequence[str]] = {},
    baselines: Baselines = {},
    answers: AnswersOf | None = None,
) -> dict[str, Any]:
    """The pipeline's result.json. report: the resolved section. results, domains, inputs, baselines: of each stage, one result per seed,
    its domains, the stages that it starts from, and its control and source-only. answers: of one run, None where they are not at hand.
    """
    measured = [name for name, found in results.items() if found[0].get("metrics")]
    wanted: list[Mapping[str, Any]] = report["rows"] or [{"label": name, "stage": name} for name in measured]
    rows = []
    for entry in wanted:
        row = summarise(
            averaged([results[name] for name in stages_shown(entry)]),
            label=entry["label"],
            stage=entry["stage"],
            metric=entry.get("metric"),
            tests=list(report["columns"]),
            also=entry.get("also", {}),
        )
        if len(shown := stages_shown(entry)) > 1:
            row["tasks"] = tasks_of([domains.get(name, ()) for name in shown])
        if priors := priors_of([results[name] for name in shown], test_of(row["metric"])):
            row["priors"] = priors
        rows.append(row | {key: entry[key] for key in ("stages", "group", "note", "emphasis") if entry.get(key)})
    mark_oracles(rows, results, inputs)
    mark_negative_transfer(rows, baselines, answers)
    return {"task": "pipeline", "rows": rows, **_differences(report["comparisons"], rows, answers)}


def _differences(
    entries: Sequence[Mapping[str, Any]], rows: Sequence[dict[str, Any]], answers: AnswersOf | None
) -> dict[str, Any]:
    """The entries `comparisons` (differences of two rows) and, where any is over several rows, `gains` of a pipeline's result.

    Gains have intervals over seeds and test images, as primary contrasts do, where predictions were kept.
    """
    comparisons, gains = list[dict[str, Any]](), list[dict[str, Any]]()
    kind = any(entry.get("primary") for entry in entries)
    for entry in entries:
        (a,), label = rows_named(rows, entry["a"]), entry["label"]
        others = [rows_named(rows, name)[0] for name in subtracted(entry)]
        beyond = [rows_named(rows, name)[0] for name in entry.get("beyond", ())]
        found = [compare(a, b, f"{label}, over {b['label']}" if len(others) > 1 else label, beyond) for b in others]
        if len(others) > 1:
            over = [difference_over_images(a, b, answers) for b in others]
            gains.append(gain_of(label, found, a["metric"], [one for one in over if one is not None]))
        comparisons += [one | ({"primary": bool(entry.get("primary"))} if kind else {}) for one in found]
    return {"comparisons": comparisons, **({"gains": gains} if gains else {})}


def _answers_of(jobs: Sequence[StageJob]) -> AnswersOf:
    """Those that the stages' own folders keep, each read once, when it is asked for."""
    folders = {(job.name, job.seed): job.dir for job in jobs}
    return functools.cache(lambda stage, seed: read_answers(read_run(folders[stage, seed])))


def _judged(report: Mapping[str, Any], rows: Sequence[dict[str, Any]], answers: AnswersOf) -> list[dict[str, Any]]:
    """The primary contrasts; each row gets `over_images`, its interval over seeds and test images."""
    named = {side: rows_named(rows, side)[0] for entry in report["comparisons"] for side in sides_of(entry)}
    for row in rows:
        row["over_images"] = over_images(row, answers)
    return primary_contrasts(report["comparisons"], named, answers)


def _finished(job: StageJob) -> dict[str, Any] | None:
    """The job's result if it has one; `plan_pipeline` has checked that it belongs to this config."""
    return read_result(job.dir, lambda _: None)  # what is damaged is named by the run itself, which makes it anew


def _check_metrics(name: str, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError, as early as possible, if a row wants a metric that its stage does not have."""
    for row in rows:
        if name in stages_shown(row):
            for metric in (row["metric"] or main_metric(result), *row["also"].values()):
                value_of(result, metric)


def printed_tables(table: Mapping[str, Any]) -> list[Table]:
    """The results with their differences, and after them the oracles in a table of their own."""
    results, oracles = ([row for row in table["rows"] if (row["kind"] == ORACLE) == wanted] for wanted in (False, True))
    parts = [(results, table["comparisons"])] if results or table["comparisons"] else []
    return [_printed_table(*part) for part in (*parts, *([(oracles, [])] if oracles else []))]


def _printed_table(rows: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> Table:
    printed = Table(box=None, header_style="dim", pad_edge=False)
    headings = [("", "left"), ("metric", "left"), ("mean", "right"), ("95 % interval", "left"), ("n", "right")]
    headings.append(("looks", "right"))
    if any(row.get("priors") for row in rows):
        headings.append((HEAD, "left"))
    for heading, side in headings:
        printed.add_column(heading, justify=side)  # pyright: ignore[reportArgumentType]
    for row in rows:
        scale = 100.0 if is_fraction(row["metric"], row["values"]) else 1.0
        printed.add_row(
            escape(f"{row['label']} [{row['kind']}]" if row["kind"] in (ORACLE, DIAGNOSTIC) else row["label"]),
            row["metric"],
            number(row["mean"], scale),
            escape(interval(row, scale)),
            str(row["n"]),
            looks_note(row).partition(" (")[0].removeprefix("looks: "),
            *([priors_cell(row)] if len(headings) > 6 else []),
        )
    for row in comparisons:
        bounds = escape(interval(row, 100, sign=True))
        kind = "difference" if row.get("primary", True) else "exploratory"
        printed.add_row(escape(row["label"]), kind, number(row["mean"], 100, sign=True), bounds, str(row["n"]))
    return printed
