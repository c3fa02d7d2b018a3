"""What the page shows of one stage, or of one experiment: its numbers, curves, pictures, map, errors, facts and config."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ...core.evaluate.definitions import definition_of
from ...core.evaluate.looks import merged_looks
from ...core.files import read_regular
from ...core.launchlog import warn
from .adapted import AdaptedView, adapted_view
from .answers import Seeds
from .commands import commands_of
from .confusion import Confusion, confusions
from .curves import curves
from .figures import Figure, scatter
from .html import yaml_text
from .levels import Levels, slice_levels
from .live import Live
from .maps import LiveMap, live_map
from .meanings import defined_name
from .network import network_facts
from .oracles import is_ordered_by_labels
from .records import StageRuns
from .reliability import confidence_figures
from .results import looks_note, summarise
from .selection import ValidatorTable, validator_tables
from .tables import ResultTable, duration, interval, is_fraction, number, results_tables, selection_sentence

MOST_WHOLE = 24  # stages of a page of which everything is shown
_PANELS_OF_MANY = 3  # curves of a further one
_PICTURE_WIDTH = 1400
_PICTURE_BYTES = 16_000  # of a PNG that stays as it is
# Metrics that stand beside the first one of a protocol; all of them stand in a table of their own.
BESIDE = ("precision", "recall", "f1", "top5", "auroc", "worst_group", "ece")


def alarms(stages: Sequence[StageRuns]) -> list[str]:
    """What is said above all tables: sentences about each training whose game was lost, each classifier that may have collapsed on its
    target, and kept states of a training that were damaged, so that they are missing where candidates are compared.
    """
    found = []
    for stage in stages:
        for record in stage.records:
            diagnostics = record.result.get("diagnostics") or {}
            if lost := (diagnostics.get("training") or {}).get("lost"):
                found.append(f"{stage.name}, seed {record.seed}: {lost}.")
            alarm = (diagnostics.get("target") or {}).get("alarm")
            if alarm:
                found.append(f"{stage.name}, seed {record.seed}: the classifier may have collapsed: {alarm}.")
            for name, why in (record.result.get("states_lost") or {}).items():
                found.append(f"{stage.name}, seed {record.seed}: {name} is missing in the final test: {why}.")
            for why in (record.result.get("validators") or {}).get("lost") or ():
                found.append(f"{stage.name}, seed {record.seed}: {why}.")
    return found


@dataclass(frozen=True)
class Picture:
    source: str
    caption: str
    width: int


@dataclass(frozen=True)
class StageView:
    """What the page shows of one stage.

    label: of the first row that shows it. metrics: (name, value, interval, its name in the page's list of meanings) of all. confidence:
    reliability, risk and coverage.
    validators: what each would have picked among the candidates of an adaptation. adapted: what an adaptation says of itself beside these.
    front: whether its map and first confusion matrix stand in the page's first part. live: what the script draws in place of the maps.
    commands: (what it does, command). brief: whether its pictures, maps, errors and further curves are left out.
    """

    name: str
    label: str
    verb: str
    summary: str
    facts: list[tuple[str, str]]
    table: ResultTable | None
    curves: list[Figure]
    config: str
    commands: list[tuple[str, str]]
    pictures: list[Picture] = field(default_factory=list)
    maps: list[Figure] = field(default_factory=list)
    map_caption: str = ""
    confusions: list[Confusion] = field(default_factory=list)
    metrics: list[tuple[str, str, str, str]] = field(default_factory=list)
    confidence: list[Figure] = field(default_factory=list)
    validators: list[ValidatorTable] = field(default_factory=list)
    front: bool = False
    adapted: AdaptedView | None = None
    live: LiveMap | None = None
    brief: bool = False


def view_stage(
    stage: StageRuns, *, label: str, front: bool, answers: Seeds, live: Live, levels: Mapping[str, Levels] = {}
) -> StageView:
    """What the page shows of one stage. answers: of its runs that have predictions, by seed. levels: of its tests.

    live: gets what the page's script draws.
    """
    chart = next((record.map for record in stage.records if record.map), {})
    seed = stage.first.seed
    adapted = adapted_view(stage)
    panels = curves(
        [record.rows for record in stage.logged],
        bool(adapted.curves),
        stage.seed_names,
        {**levels, **slice_levels(stage)},
    )
    confidence = confidence_figures(list(answers.values()), levels)
    live.add(label, [*panels, *confidence, *adapted.curves])
    live.add_map(label, moving := live_map(stage, label, answers, live.thumbnails))
    return replace(
        _basis(stage, label, panels, levels),
        pictures=[found for path, caption in stage.first.pictures() if (found := _picture(path, caption)) is not None],
        maps=[
            scatter(chart, by, when)
            for by in ("label", "domain")
            for when in (("before", "after") if chart.get("before") else ("",))
            if len(chart.get(by) or [])
        ],
        map_caption=f"{chart.get('method', 'map of features')}{f', seed {seed}' if seed is not None else ''}"
        if chart
        else "",
        confusions=confusions(stage.results),
        metrics=_all_metrics(stage) if _is_measured(stage) else [],
        confidence=confidence,
        validators=validator_tables(stage),
        front=front,
        adapted=adapted if adapted.shown else None,
        live=moving,
    )


def view_briefly(stage: StageRuns, *, label: str, live: Live, levels: Mapping[str, Levels] = {}) -> StageView:
    """What a page of very many stages shows of the later ones: numbers, the first curves, and the config."""
    known = {**levels, **slice_levels(stage)}
    panels = curves([record.rows for record in stage.logged], True, stage.seed_names, known, most=_PANELS_OF_MANY)
    live.add(label, panels)
    return replace(_basis(stage, label, panels, levels), brief=True)


def _basis(stage: StageRuns, label: str, panels: list[Figure], levels: Mapping[str, Levels]) -> StageView:
    """What the page shows of every stage."""
    return StageView(
        name=stage.name,
        label=label,
        verb=stage.first.verb,
        summary=_summary(stage),
        facts=_facts(stage),
        table=results_tables(protocol_rows(stage), {}, {stage.name: levels})[0] if _is_measured(stage) else None,
        curves=panels,
        config=yaml_text(stage.first.config),
        commands=commands_of(stage),
    )


def _is_measured(stage: StageRuns) -> bool:
    return any(result.get("metrics") for result in stage.results)


def _summary(stage: StageRuns) -> str:
    """Verb, method, time and state in one line."""
    method = stage.first.config.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    seconds = [float(result.get("seconds") or 0) for result in stage.results]
    time = f"{duration(sum(seconds) / len(seconds))}{' a seed' if len(seconds) > 1 else ''}" if any(seconds) else ""
    states = "" if all(record.finished for record in stage.records) else "unfinished"
    return " · ".join(filter(None, [stage.first.verb, str(name or ""), time, states]))


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
    facts += network_facts(first.path, first.result)
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
    if isinstance(labelled := first.result.get("seen_labelled"), int):
        facts.append(("evaluation images trained on with labels", share_of_tests(labelled, first.result)))
    if first.result.get("selection"):
        facts.append(("selection", f"{first.result['selection']}. {selection_sentence(first.result['selection'])}"))
    if looks := looks_note({"looks": merged_looks(result.get("looks") or {} for result in stage.results)}):
        facts.append(("looks at test labels, one a set of weights scored", looks.removeprefix("looks: ")))
    if is_ordered_by_labels(first.result):
        facts.append(("order of the target", str(first.result["data"]["order"])))
    splits = (first.result.get("data") or {}).get("split") or {}
    if isinstance(splits, dict) and splits:
        facts.append(("splits", ", ".join(f"{name} {str(digest)[:12]}" for name, digest in splits.items())))
    facts.append(("seeds", ", ".join(str(record.seed) for record in stage.records)))
    facts.append(("directory", str(first.path)))
    return facts


def share_of_tests(count: int, result: Mapping[str, Any]) -> str:
    """`61 of 61 (100.0%)`; the number alone where the result doesn't have those of its tests, as that of an adaptation."""
    sizes = (result.get("data") or {}).get("n") or {}
    if not count or not isinstance(sizes, dict) or "train" not in sizes:
        return str(count)
    tests = sum(size for name, size in sizes.items() if name != "train")
    return f"{count} of {tests} ({count / tests:.1%})" if tests else str(count)


def _flat(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else [value]


def _picture(path: Path, caption: str) -> Picture | None:
    """A picture as a data URI; larger ones become WebP, at most 1400 pixels wide, to keep the page small. None if it is damaged."""
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
                small.save(buffer, format="WEBP", quality=80)
                data, kind = buffer.getvalue(), "webp"
    # SyntaxError: Pillow's, of a broken PNG
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "it is no PNG" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
        warn(f"WARNING: {path} is left out ({why})")
        return None
    return Picture(
        f"data:image/{kind};base64,{base64.b64encode(data).decode()}", caption or path.stem.replace("_", " "), width
    )


def _kind_of(metric: str) -> str:
    """The last part of TEST/PROTOCOL/METRIC."""
    return metric.rsplit("/", 1)[-1]


def protocol_rows(stage: StageRuns) -> list[dict[str, Any]]:
    """One row for each TEST/PROTOCOL of one experiment: its first metric, the others beside it.

    A row whose metric is not that of the first one says its name, so that nobody takes it for an accuracy.
    """
    results = [result for result in stage.results if result.get("metrics")]
    protocols: dict[str, list[str]] = {}
    for name in results[0]["metrics"]:
        protocols.setdefault(name.rpartition("/")[0] or name, []).append(name)
    first = _kind_of(next(iter(results[0]["metrics"])))
    return [
        summarise(
            [result for result in results if names[0] in result["metrics"]],
            label=protocol if _kind_of(names[0]) == first else f"{protocol}, {_kind_of(names[0]).replace('_', ' ')}",
            stage=stage.name,
            metric=names[0],
            also={kind: name for name in names[1:] if (kind := _kind_of(name)) in BESIDE or not definition_of(name)},
        )
        for protocol, names in protocols.items()
    ]


def _all_metrics(stage: StageRuns) -> list[tuple[str, str, str, str]]:
    """Every metric that all results have: name, mean, interval, and under which name the page says what it means."""
    results = [result for result in stage.results if result.get("metrics")]
    lines = []
    for name in results[0]["metrics"]:
        if all(name in result["metrics"] for result in results):
            row = summarise(results, label=name, stage=stage.name, metric=name)
            scale = 100.0 if is_fraction(name, row["values"]) else 1.0
            lines.append((name, number(row["mean"], scale), interval(row, scale), defined_name(name)))
    return lines
