"""The page of a run, of several runs compared, or of a pipeline: results with intervals, curves, pictures and configs.

The page is one file that asks for nothing else, so that it can be mailed, printed and kept beside the run. All of it stands there without
script; its script adds what moves: zoom, smoothing, maps with pictures, sorting, copying, a dark and a light scheme.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import UserError, first_line
from ..verify import examine_below
from .answers import Answers, Seeds, answers_of
from .claims import stages_shown
from .commands import page_command
from .contents import Page
from .contrasts import difference_over_images
from .differences import differences_table
from .figures import Figure
from .headline import verdict_of_runs, verdict_of_table
from .html import provenance, write_html, yaml_text
from .labels import label_figures
from .layer_gradients import layer_gradient_figures
from .layers import layer_figures
from .levels import LevelsOfStages, levels_of
from .lines import page_lines
from .live import Live
from .markdown import contrast_lines, gain_lines
from .meanings import glossary
from .negative import baselines_of, mark_negative_transfer, negative_lines
from .oracles import mark_oracles
from .pairs import Paired, Pairs, adjust, compare_images, pair_stages
from .records import (
    RunRecord,
    StageRuns,
    by_experiment,
    is_attribution,
    is_pipeline,
    is_sweep,
    read_readable,
    stages_of,
)
from .results import compare, main_metric, summarise
from .settings import settings_that_differ
from .stages import MOST_WHOLE, StageView, alarms, protocol_rows, view_briefly, view_stage
from .tables import caveats, duration, results_tables
from .unfinished import results_so_far, standing


def write_report(runs: Sequence[Path | str], out: Path | str, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the page of a pipeline, of a sweep, of one run, or of several runs compared. Returns `out`.

    say: gets the lines of a short version (`page_lines`). Runs whose configs differ only in the seed become one row.
    Raises UserError for a path that is not a run, if a pipeline or sweep is given together with other runs, and if a page cannot be drawn
    from what an earlier version, or somebody, wrote into a file.
    """
    if not runs:
        raise UserError("no run given; give at least one folder of a run or of a pipeline")
    try:
        return _write(runs, out, say)
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # What we wrote and nobody changed can be drawn: else it is a bug. Only what lacks a true digest may hold anything.
        found = next(
            (found for run in runs for found in examine_below(Path(run)) if found.why or not found.guarded), None
        )
        if found is None:
            raise
        why = found.why or "it has no digest, so nobody knows whether it was changed"
        raise UserError(
            f"no page can be drawn of what is there ({type(error).__name__}: {first_line(error)}); look at {found.path} ({why}), "
            "restore it, or run the same command again in another run.dir"
        ) from error


def _write(runs: Sequence[Path | str], out: Path | str, say: Callable[[str], None]) -> Path:
    records, left_out = read_readable([Path(run) for run in runs])
    collections = [record for record in records if is_pipeline(record) or is_sweep(record)]
    if collections and len(records) > 1:
        kind, runs_of = ("sweep", "trial-*") if is_sweep(collections[0]) else ("pipeline", "seed-0/*")
        raise UserError(
            f"{collections[0].path} is a {kind}, which has its own page; report it alone, "
            f"or compare its runs, for example {collections[0].path}/{runs_of}"
        )
    if collections and is_sweep(collections[0]):
        from ..sweep.page import write_sweep_page  # which imports matplotlib

        return write_sweep_page(collections[0].path, Path(out))
    if attributions := [record for record in records if is_attribution(record)]:
        if len(records) > 1:
            raise UserError(f"{attributions[0].path} is an attribution, which has its own page; report it alone")
        from ..attribute.page import write_attribution_page

        return write_attribution_page(attributions[0].path, Path(out))
    page = _pipeline_page(collections[0]) if collections else _runs_page(by_experiment(records))
    page.caveats += [f"Left out: {sentence}." for sentence in left_out]
    page.caveats += [f"Damaged: {sentence}." for record in records for sentence in record.damage]
    for line in page_lines(page):
        say(line)
    return write_html("report.html.j2", page, Path(out))


def _pipeline_page(pipeline: RunRecord) -> Page:
    stages = stages_of(pipeline)
    answers = {stage.name: answers_of(stage) for stage in stages}
    damage = [sentence for stage in stages for record in stage.records for sentence in record.damage]
    report = pipeline.config.get("report") or {}
    left, live, levels = standing(pipeline, stages), Live(), levels_of(stages)
    result = results_so_far(pipeline, stages) if left else pipeline.result
    rows, comparisons = result.get("rows") or [], result.get("comparisons") or []
    emphasised = [row["stage"] for row in rows if row.get("emphasis")]
    front = list(dict.fromkeys(emphasised or [row["stage"] for row in rows[:1] + rows[-1:]]))[:3]
    labels = {row["stage"]: row["label"] for row in reversed(rows)}
    text = report.get("text") or []
    verdict = verdict_of_table(rows, comparisons, result.get("gains") or [], result.get("contrasts"))
    return Page(
        title=report.get("title") or pipeline.path.resolve().name,
        verdict=" ".join(
            filter(None, [left.sentence() if left else "", f"So far: {verdict}" if left and verdict else verdict])
        ),
        standing=left,
        summary=_summary(stages, "stage"),
        text=[text] if isinstance(text, str) else list(text),
        caveats=[
            *negative_lines(rows),
            *caveats(rows),
            *alarms(stages),
            *(f"Damaged: {sentence}." for sentence in damage),
        ],
        tables=results_tables(rows, report.get("columns") or {}, levels) if rows else [],
        differences=differences_table(comparisons) if comparisons else None,
        contrasts=contrast_lines(result.get("contrasts")),
        gains=gain_lines(result.get("gains") or []),
        pairs=_pipeline_pairs(comparisons, rows, answers),
        labels=label_figures(stages, levels),
        stages=_views(stages, labels, front, [answers[stage.name] for stage in stages], live, levels),
        facts=provenance([record for stage in stages for record in stage.records]),
        config=yaml_text(pipeline.config),
        settings=settings_that_differ(stages),
        command=page_command([pipeline]),
        layers=_layers(stages, labels, levels, live),
        meanings=_meanings(stages),
        live=live,
    )


OF_TASKS = "rows that are means over tasks; the differences of their tasks together stand in the table of differences"


def _pipeline_pairs(
    comparisons: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Seeds]
) -> Pairs:
    """The comparisons of a pipeline's config, image by image, on the metric's test and protocol of each row: what is not primary.

    A row that is a mean over tasks is left to the table of differences, whose interval is over the images of all tasks.
    """
    by_label, lines, notes = {row["label"]: row for row in rows}, list[Paired](), list[str]()
    for one in comparisons:
        second, first = by_label.get(one["a"]), by_label.get(one["b"])
        if first is None or second is None:
            continue
        if len(stages_shown(first)) > 1 or len(stages_shown(second)) > 1:
            notes.append(OF_TASKS)
            continue
        sides = [(row["label"], answers.get(row["stage"], {})) for row in (first, second)]
        if not all(found for _, found in sides):
            continue
        keys = (first["metric"].rpartition("/")[0], second["metric"].rpartition("/")[0])
        found = compare_images(sides[0], sides[1], keys)
        if isinstance(found, str):
            notes.append(found)
            continue
        # Of a primary contrast, its own metric is judged there.
        lines += [line for line in found if not (one.get("primary") and first["metric"].endswith(f"/{line.metric}"))]
    if any(one.get("primary") for one in comparisons):
        lines = [replace(line, note=f"{line.note} Exploratory.".strip()) for line in lines]
    return Pairs(adjust(lines), list(dict.fromkeys(notes)))


def _views(
    stages: Sequence[StageRuns],
    labels: Mapping[str, str],
    front: Sequence[str],
    answers: Sequence[Seeds],
    live: Live,
    levels: LevelsOfStages,
) -> list[StageView]:
    """Everything of the first MOST_WHOLE stages and of those in front; of the others what stays small."""
    views = []
    for number, (stage, found) in enumerate(zip(stages, answers, strict=True)):
        label, first = labels.get(stage.name, stage.name), stage.name in front
        if number < MOST_WHOLE or first:
            view = view_stage(stage, label=label, front=first, answers=found, live=live, levels=levels[stage.name])
        else:
            view = view_briefly(stage, label=label, live=live, levels=levels[stage.name])
        views.append(view)
    return views


def _runs_page(stages: list[StageRuns]) -> Page:
    measured = [stage for stage in stages if any(result.get("metrics") for result in stage.results)]
    rows, differences, live, levels = [], None, Live(), levels_of(stages)
    answers = [answers_of(stage) for stage in stages]
    if len(stages) > 1 and measured:
        rows = [_experiment_row(stage) for stage in measured]
        mark_oracles(rows, {stage.name: stage.results for stage in stages})
        known = {stage.name: found for stage, found in zip(stages, answers, strict=True)}
        baselines = baselines_of({stage.name: stage.first.config for stage in stages})

        def answered(stage: str, seed: int) -> Mapping[str, Answers]:
            return known[stage].get(seed, {})

        mark_negative_transfer(rows, baselines, answered)
        paired = [
            row for row in rows[1:] if row["metric"] == rows[0]["metric"] and set(row["seeds"]) & set(rows[0]["seeds"])
        ]
        comparisons = [
            {**compare(row, rows[0], row["label"]), "over_images": difference_over_images([row, rows[0]], answered)}
            for row in paired
        ]
        differences = differences_table(comparisons) if comparisons else None
    elif measured:
        rows = protocol_rows(measured[0])
    first, pairs = stages[0].first, pair_stages(stages, answers)
    title = f"{first.verb}: {stages[0].name}" if len(stages) == 1 else f"{len(stages)} experiments compared"
    return Page(
        title=title,
        verdict=verdict_of_runs(stages, rows, levels, pairs),
        summary=_summary(stages, "experiment"),
        caveats=[*negative_lines(rows), *caveats(rows), *alarms(stages)],
        tables=results_tables(rows, {}, levels) if rows else [],
        differences=differences,
        pairs=pairs,
        labels=label_figures(stages, levels),
        stages=_views(stages, {}, [stages[0].name] if len(stages) == 1 else [], answers, live, levels),
        facts=provenance([record for stage in stages for record in stage.records]),
        settings=settings_that_differ(stages),
        command=page_command([record for stage in stages for record in stage.records]),
        layers=_layers(stages, {}, levels, live),
        meanings=_meanings(stages),
        live=live,
    )


def _layers(stages: Sequence[StageRuns], labels: Mapping[str, str], levels: LevelsOfStages, live: Live) -> list[Figure]:
    """Accuracy and gradients by layer, of all stages that have them; registered with the page's script."""
    figures = [*layer_figures(stages, labels, levels), *layer_gradient_figures(stages, labels)]
    live.add("Layer by layer", figures)
    return figures


def _experiment_row(stage: StageRuns) -> dict[str, Any]:
    results = [result for result in stage.results if result.get("metrics")]
    main = main_metric(results[0])
    kind = main.rsplit("/", 1)[-1]
    also = {
        name.removesuffix(f"/{kind}"): name
        for name in results[0]["metrics"]
        if name != main and name.endswith(f"/{kind}")
    }
    return summarise(results, label=stage.name, stage=stage.name, metric=main, also=also)


def _meanings(stages: Sequence[StageRuns]) -> list[tuple[str, str]]:
    return glossary(name for stage in stages for result in stage.results for name in result.get("metrics") or {})


def _summary(stages: Sequence[StageRuns], noun: str) -> str:
    seeds = {record.seed for stage in stages for record in stage.records}
    seconds = sum(float(result.get("seconds") or 0) for stage in stages for result in stage.results)
    unfinished = sum(not record.finished for stage in stages for record in stage.records)
    parts = [
        _count(len(stages), noun) if len(stages) > 1 else "",
        _count(len(seeds), "seed"),
        f"{duration(seconds)} in all" if seconds else "",
        f"{_count(unfinished, 'run')} unfinished" if unfinished else "",
    ]
    return " · ".join(filter(None, parts))


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
