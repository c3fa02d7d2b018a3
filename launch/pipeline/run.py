"""Pipelines: stages that use each other's results, over several seeds; each stage is a run in `DIR/seed-S/STAGE`.

Finished stages are not run again, so an interrupted pipeline resumes, and seeds and stages can be added later. Several commands may
run different seeds in one folder at the same time; a last command with all seeds then writes the table.
"""

import fnmatch
import functools
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...core.distributed import rank
from ...core.errors import UserError
from ...core.files import write_text
from ...core.loudness import Loudness, loudness, running_stages
from ...core.manifest import write_record
from ...core.run.folder import make_folder, read_result, run_folder, write_config
from ..allocator import give_back_freed_memory
from ..report.answers import read_answers
from ..report.claims import stages_shown
from ..report.contrasts import AnswersOf, over_images, primary_contrasts
from ..report.differences import difference_bounds, difference_words
from ..report.layer_tables import tables_of_pipeline
from ..report.layers import layer_accuracies
from ..report.markdown import gain_lines, pipeline_markdown
from ..report.negative import baselines_of, negative_lines
from ..report.oracles import DIAGNOSTIC, ORACLE
from ..report.page import write_report
from ..report.priors import HEAD, priors_cell
from ..report.records import read_run
from ..report.results import looks_note, main_metric, value_of
from ..report.tables import bounds_of, interval, is_fraction, number
from .checks import rows_named, sides_of
from .contrasts import declare, declared_contrasts
from .plan import STAGE_VERBS, StageJob, Validate, domains_of, found_again, inputs_file, plan_pipeline, recorded_inputs
from .preflight import Build, check_buildable
from .table import tabulate


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
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the unfinished stages, seed by seed, then write `result.json` and `report.html`; returns the result.

    overrides: `seeds=5`, `run.dir=...`, `stages.NAME.KEY=VALUE`. validate(verb, config, overrides): resolves a stage's config or
    raises UserError. build: builds a stage without running it, so that all are checked first. only: names of stages, also with * and ?, to
    run now with those that they use; while others are not finished the result is {}, and nothing but the stages' runs is written. Raises
    ConfigError with all mistakes at once, before the first stage runs.
    """
    config, jobs = plan_pipeline(path, overrides, validate, verbs)
    if build is not None:
        check_buildable(path, jobs, build)
    chosen = stages_to_run(jobs, only)
    folder = run_folder(config["run"]["dir"])
    console = Console(stderr=True, highlight=False, quiet=rank() != 0 or loudness() is Loudness.QUIET)
    if rank() == 0:
        make_folder(folder)
        write_config(folder, found_again(config, path), shared=True)
    declared = declare(folder, declared_contrasts(config["report"]), jobs) if rank() == 0 else None
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in config["stages"]}
    waiting = 0
    for count, job in enumerate(jobs):
        result = _finished(job)
        if result is None and job.name not in chosen:
            waiting += 1
            continue
        where = f"seed {job.seed}  {count % len(results) + 1:2d}/{len(results)}  [bold]{escape(job.name)}[/]  [dim]{job.verb}"
        if job.name in chosen:
            console.print(where if result is None else f"{where}, finished before")
        if result is None or not inputs_file(job).exists():
            _record_inputs(job)
        if result is None:
            with running_stages():
                result = execute(job.verb, job.config, job.overrides, quiet=True)
            give_back_freed_memory()
        _check_metrics(job.name, result, config["report"]["rows"])
        results[job.name].append({**result, "seed": job.seed})
    if waiting:
        console.print(
            f"{waiting} of {len(jobs)} runs are not made yet; without --only the command makes them, and the table"
        )
        return {}
    return _write_table(path, config, folder, jobs, results, declared, console)


def _write_table(
    path: str | Path,
    config: Mapping[str, Any],
    folder: Path,
    jobs: Sequence[StageJob],
    results: Mapping[str, list[dict[str, Any]]],
    declared: Mapping[str, Any] | None,
    console: Console,
) -> dict[str, Any]:
    """The content of result.json, of the finished runs; rank 0 writes it with table.md and the page, and prints the tables."""
    domains = {job.name: domains_of(job.resolved) for job in jobs}
    baselines = baselines_of({job.name: job.resolved for job in reversed(jobs)})  # of the first seed
    answers = _answers_of(jobs) if rank() == 0 else None
    inputs = {job.name: tuple(job.inputs) for job in jobs}
    table = tabulate(config["report"], results, domains, inputs, baselines, answers)
    if answers is not None:
        if declared is not None:
            table |= {"contrasts": {**declared, "primary": _judged(config["report"], table["rows"], answers)}}
        write_record(folder / "result.json", table, shared=True)
        text = pipeline_markdown(table, f"rootstock run {path}", tables_of_pipeline(folder, _by_layer(jobs, results)))
        write_text(folder / "table.md", text, shared=True)
        page = write_report([folder], folder / "report.html")
        for printed in printed_tables(table):
            console.print(printed)
        for line in (*negative_lines(table["rows"]), *gain_lines(table.get("gains") or [])):
            console.print(escape(line), soft_wrap=True)
        console.print(f"report: {escape(str(page))}", soft_wrap=True)
    return table


def _by_layer(jobs: Sequence[StageJob], results: Mapping[str, list[dict[str, Any]]]) -> set[str]:
    """The names of the stages that probed or logged layer by layer."""
    logged = {job.name for job in jobs if job.resolved.get("run", {}).get("log_gradients")}
    return logged | {
        name for name, runs in results.items() if any(layer_accuracies(run.get("metrics") or {}) for run in runs)
    }


def stages_to_run(jobs: Sequence[StageJob], only: Sequence[str]) -> set[str]:
    """The names of the stages that `only` names, and of those that they use; all of them for none. Raises UserError for a name of none."""
    known = {job.name: job for job in reversed(jobs)}
    if not only:
        return set(known)
    chosen = set[str]()
    for name in only:
        found = fnmatch.filter(known, name)
        if not found:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"--only: no stage is called {name}{hint} (there are {', '.join(sorted(known))})")
        chosen.update(found)
    waiting = list(chosen)
    while waiting:
        used = set(known[waiting.pop()].inputs) - chosen
        chosen |= used
        waiting += used
    return chosen


def _record_inputs(job: StageJob) -> None:
    """Rank 0 writes down what the job's run is made from."""
    if rank() == 0:
        job.dir.parent.mkdir(parents=True, exist_ok=True)
        write_record(inputs_file(job), recorded_inputs(job), shared=True)


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
    looked, apart = (any(row.get(key) for row in rows) for key in ("looks", "priors"))
    headings += [head for head, shown in ((("looks", "right"), looked), ((HEAD, "left"), apart)) if shown]
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
            *([looks_note(row).partition(" (")[0].removeprefix("looks: ")] if looked else []),
            *([priors_cell(row)] if apart else []),
        )
    for row in comparisons:
        bounds = escape(difference_bounds(row, bounds_of(row)))
        kind = "difference" if row.get("primary", True) else "exploratory"
        printed.add_row(escape(row["label"]), kind, difference_words(row), bounds, str(row["n"]))
    return printed
