"""The page of a run, of several runs compared, or of a pipeline: results with intervals, curves, pictures and configs.

The page is one file without scripts or links, so that it can be mailed, printed and kept beside the run.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ...core.errors import UserError, first_line
from ...core.files import read_regular
from ...core.launchlog import warn
from ..verify import examine_below
from .confusion import Confusion, confusions
from .curves import curves
from .figures import Figure, scatter
from .html import provenance, write_html, yaml_text
from .records import RunRecord, StageRuns, by_experiment, is_pipeline, is_sweep, read_readable, stages_of
from .results import compare, main_metric, summarise
from .tables import ResultTable, caveats, differences_table, duration, results_tables, selection_sentence

_PICTURE_WIDTH = 1400
_PICTURE_BYTES = 150_000


@dataclass(frozen=True)
class Picture:
    source: str
    caption: str
    width: int


@dataclass(frozen=True)
class StageView:
    """What the page shows of one stage.

    label: of the first row that shows it. front: whether its map and first confusion matrix stand in the page's first part.
    """

    name: str
    label: str
    verb: str
    summary: str
    facts: list[tuple[str, str]]
    table: ResultTable | None
    curves: list[Figure]
    pictures: list[Picture]
    maps: list[Figure]
    map_caption: str
    confusions: list[Confusion]
    config: str
    front: bool = False


@dataclass
class Page:
    title: str
    summary: str
    text: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    tables: list[ResultTable] = field(default_factory=list)
    differences: ResultTable | None = None
    stages: list[StageView] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    config: str = ""


def write_report(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Write the page of a pipeline, of a sweep, of one run, or of several runs compared. Returns `out`.

    Runs whose configs differ only in the seed become one row. Raises UserError for a path that is not a run, if a pipeline or sweep is
    given together with other runs, and if a page cannot be drawn from what an earlier version, or somebody, wrote into a file.
    """
    if not runs:
        raise UserError("no run given; give at least one folder of a run or of a pipeline")
    try:
        return _write(runs, out)
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


def _write(runs: Sequence[Path | str], out: Path | str) -> Path:
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
    page = _pipeline_page(collections[0]) if collections else _runs_page(by_experiment(records))
    page.caveats += [f"Left out: {sentence}." for sentence in left_out]
    page.caveats += [f"Damaged: {sentence}." for record in records for sentence in record.damage]
    return write_html("report.html.j2", page, Path(out))


def _pipeline_page(pipeline: RunRecord) -> Page:
    stages = stages_of(pipeline)
    damage = [sentence for stage in stages for record in stage.records for sentence in record.damage]
    report = pipeline.config.get("report") or {}
    rows = pipeline.result.get("rows") or []
    comparisons = pipeline.result.get("comparisons") or []
    emphasised = [row["stage"] for row in rows if row.get("emphasis")]
    front = list(dict.fromkeys(emphasised or [row["stage"] for row in rows[:1] + rows[-1:]]))[:3]
    labels = {row["stage"]: row["label"] for row in reversed(rows)}
    text = report.get("text") or []
    return Page(
        title=report.get("title") or pipeline.path.resolve().name,
        summary=_summary(stages, "stage"),
        text=[text] if isinstance(text, str) else list(text),
        caveats=[*caveats(rows), *(f"Damaged: {sentence}." for sentence in damage)],
        tables=results_tables(rows, report.get("columns") or {}) if rows else [],
        differences=differences_table(comparisons) if comparisons else None,
        stages=[_view(stage, label=labels.get(stage.name, stage.name), front=stage.name in front) for stage in stages],
        facts=provenance([record for stage in stages for record in stage.records]),
        config=yaml_text(pipeline.config),
    )


def _runs_page(stages: list[StageRuns]) -> Page:
    measured = [stage for stage in stages if any(result.get("metrics") for result in stage.results)]
    rows, differences = [], None
    if len(stages) > 1 and measured:
        rows = [_experiment_row(stage) for stage in measured]
        paired = [
            row for row in rows[1:] if row["metric"] == rows[0]["metric"] and set(row["seeds"]) & set(rows[0]["seeds"])
        ]
        comparisons = [compare(row, rows[0], row["label"]) for row in paired]
        differences = differences_table(comparisons) if comparisons else None
    elif measured:
        rows = _protocol_rows(measured[0])
    first = stages[0].first
    title = f"{first.verb}: {stages[0].name}" if len(stages) == 1 else f"{len(stages)} experiments compared"
    return Page(
        title=title,
        summary=_summary(stages, "experiment"),
        caveats=caveats(rows),
        tables=results_tables(rows, {}) if rows else [],
        differences=differences,
        stages=[_view(stage, label=stage.name, front=len(stages) == 1) for stage in stages],
        facts=provenance([record for stage in stages for record in stage.records]),
    )


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


def _protocol_rows(stage: StageRuns) -> list[dict[str, Any]]:
    """One row for each TEST/PROTOCOL of one experiment: its first metric, the others beside it."""
    results = [result for result in stage.results if result.get("metrics")]
    protocols: dict[str, list[str]] = {}
    for name in results[0]["metrics"]:
        protocols.setdefault(name.rpartition("/")[0] or name, []).append(name)
    return [
        summarise(
            [result for result in results if names[0] in result["metrics"]],
            label=protocol,
            stage=stage.name,
            metric=names[0],
            also={name.rsplit("/", 1)[-1]: name for name in names[1:]},
        )
        for protocol, names in protocols.items()
    ]


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


def _view(stage: StageRuns, *, label: str, front: bool) -> StageView:
    chart = next((record.map for record in stage.records if record.map), {})
    seed = stage.first.seed
    method = stage.first.config.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    seconds = [float(result.get("seconds") or 0) for result in stage.results]
    time = f"{duration(sum(seconds) / len(seconds))}{' a seed' if len(seconds) > 1 else ''}" if any(seconds) else ""
    states = "" if all(record.finished for record in stage.records) else "unfinished"
    measured = any(result.get("metrics") for result in stage.results)
    return StageView(
        name=stage.name,
        label=label,
        verb=stage.first.verb,
        summary=" · ".join(filter(None, [stage.first.verb, str(name or ""), time, states])),
        facts=_facts(stage),
        table=results_tables(_protocol_rows(stage), {})[0] if measured else None,
        curves=curves([record.rows for record in stage.records if record.rows]),
        pictures=[found for path, caption in stage.first.pictures() if (found := _picture(path, caption)) is not None],
        maps=[scatter(chart, by) for by in ("label", "domain") if len(chart.get(by) or [])],
        map_caption=f"{chart.get('method', 'map of features')}{f', seed {seed}' if seed is not None else ''}"
        if chart
        else "",
        confusions=confusions(stage.results),
        config=yaml_text(stage.first.config),
        front=front,
    )


def _facts(stage: StageRuns) -> list[tuple[str, str]]:
    first, config = stage.first, stage.first.config
    data = config.get("data") if isinstance(config.get("data"), dict) else {}
    uris = {key: value for key, value in (data or {}).items() if key in ("train", "test", "source", "target") and value}
    facts = [
        (key, value if isinstance(value, str) else ", ".join(map(str, _flat(value)))) for key, value in uris.items()
    ]
    backbone = config.get("backbone")
    if isinstance(backbone, dict):
        facts.append(("backbone", " · ".join(str(backbone[key]) for key in ("name", "weights") if backbone.get(key))))
    rates = sorted(
        float(rate)
        for record in stage.records
        for row in record.rows
        if isinstance(rate := row.get("images_per_s"), int | float) and rate
    )
    if rates:
        facts.append(("speed", f"{rates[len(rates) // 2]:,.0f} images/s (median)"))
    seen = first.result.get("seen_unlabelled") or {}
    if seen:
        counts = ", ".join(f"{value} in {key}" for key, value in seen.items())
        facts.append(("evaluation images seen unlabelled", counts if any(seen.values()) else "0 (inductive)"))
    if first.result.get("selection"):
        facts.append(("selection", f"{first.result['selection']}. {selection_sentence(first.result['selection'])}"))
    splits = (first.result.get("data") or {}).get("split") or {}
    if isinstance(splits, dict) and splits:
        facts.append(("splits", ", ".join(f"{name} {str(digest)[:12]}" for name, digest in splits.items())))
    facts.append(("seeds", ", ".join(str(record.seed) for record in stage.records)))
    facts.append(("directory", str(first.path)))
    return facts


def _flat(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else [value]


def _picture(path: Path, caption: str) -> Picture | None:
    """A picture as a data URI; large ones become WebP, at most 1400 pixels wide, to keep the page small. None if it is damaged."""
    try:
        data, kind = read_regular(path), "png"
        # Runs write PNGs. Pillow knows more formats, and hands one of them, PostScript, to a program that runs it.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            width = image.width
            image.load()  # which compares the checksums of a PNG
            if len(data) > _PICTURE_BYTES:
                small = image.convert("RGBA" if "A" in image.getbands() else "RGB")
                small.thumbnail((_PICTURE_WIDTH, 4 * _PICTURE_WIDTH))
                buffer = io.BytesIO()
                small.save(buffer, format="WEBP", quality=86)
                data, kind = buffer.getvalue(), "webp"
    # SyntaxError: Pillow's, of a broken PNG
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "it is no PNG" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
        warn(f"WARNING: {path} is left out ({why})")
        return None
    return Picture(
        f"data:image/{kind};base64,{base64.b64encode(data).decode()}", caption or path.stem.replace("_", " "), width
    )
