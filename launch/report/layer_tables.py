"""Accuracy and gradients by layer as Markdown: the numbers behind the page's figures, of all networks, to be committed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.evaluate.intervals import ANY, ValueRange, mean_interval
from .layer_gradients import gradients_at, layer_gradients, logged_gradients, steps_in_words
from .layers import OWN_FEATURES, LayerAccuracies, layers_of_runs, levels_of_probe, stages_of_probes, title_of
from .levels import LevelsOfStages, levels_of
from .markdown import markdown_table
from .records import StageRuns, read_run, stages_of

_DEPTHS, _HEAD = (0.0, 25.0, 50.0, 75.0), 100.0  # per cent


def tables_of_pipeline(folder: Path, only: Collection[str] | None = None) -> list[str]:
    """Those of a pipeline's folder, whose result.json and runs are there; [] where no run has numbers by layer.

    only: names of the stages that may have such numbers, so that the runs of others are not read; all by default.
    """
    pipeline = read_run(folder)
    stages = stages_of(pipeline, only)
    labels = {row["stage"]: row["label"] for row in reversed(pipeline.result.get("rows") or [])}
    return layer_tables(stages, labels, levels_of(stages))


def layer_tables(stages: Sequence[StageRuns], labels: Mapping[str, str], levels: LevelsOfStages) -> list[str]:
    """Blocks of Markdown, for each figure by layer a heading, a sentence and a table; a row for each network.

    labels: of stages, by name. levels: chance and majority of each stage's tests.
    """
    runs = layers_of_runs(stages)
    blocks = list[str]()
    for probe, shown in stages_of_probes(stages, runs).items():
        networks = [
            (labels.get(stage.name, stage.name), [one[probe] for one in runs[stage.name] if probe in one])
            for stage in shown
        ]
        blocks += _accuracies(probe, networks, levels_of_probe(probe, shown, levels))
    rows = logged_gradients(stages)
    for which, place in (("first", 0), ("last", -1)):
        logged = [
            (labels.get(stage.name, stage.name), [row[place] for row in rows[stage.name] if row])
            for stage in stages
            if any(rows[stage.name])
        ]
        blocks += _gradients(which, logged) if logged else []
    return blocks


def _accuracies(
    probe: str, networks: Sequence[tuple[str, Sequence[LayerAccuracies]]], marks: Mapping[str, float]
) -> list[str]:
    """Of one TEST/PROTOCOL. networks: label, and what was probed with each seed."""
    named = {layer for _, each in networks for one in each for layer in one.layers}
    columns = [*sorted(named - {OWN_FEATURES}, key=int), *({OWN_FEATURES} & named)]
    rows = []
    for label, each in networks:
        found = [dict(zip(one.layers, one.values, strict=True)) for one in each]
        cells = [_cell([one[layer] for one in found if layer in one], 1, (0.0, 100.0)) for layer in columns]
        rows.append([label, str(len(each)), *cells])
    beside = ", ".join(f"{name} {value:.1f} %" for name, value in marks.items())
    told = [
        "Accuracy (%) of the same probe on the mean over all places of each block or stage, by its number from the first on, and of the "
        "network's own features at the end; mean over n seeds with its 95 % t-interval.",
        f"For comparison: {beside}." if beside else "",
    ]
    return _block(title_of(probe), told, columns, rows)


def _gradients(which: str, networks: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """networks: label, and the row that each seed logged."""
    rows = []
    for label, each in networks:
        found = [dict(zip(*layer_gradients(row), strict=True)) for row in each]
        cells = [_cell(_nearest(found, depth), 2) for depth in _DEPTHS]
        head = _cell([one[_HEAD] for one in found if _HEAD in one], 2)
        rows.append([label, str(len(each)), *cells, head])
    when = steps_in_words(row for _, each in networks for row in each)
    told = [
        f"log10 of the length of a layer's gradient before clipping, {when}: of the layer that is nearest to each depth, and of the head; "
        "mean over n seeds with its 95 % t-interval."
    ]
    return _block(gradients_at(which), told, [*(f"{depth:g} %" for depth in _DEPTHS), "head"], rows)


def _nearest(lengths: Sequence[Mapping[float, float]], depth: float) -> list[float]:
    """Of each seed, that of the layer before the head which is nearest to the depth; of two the first."""
    layers = [{place: value for place, value in one.items() if place < _HEAD} for one in lengths]
    return [one[min(one, key=lambda place: (abs(place - depth), place))] for one in layers if one]


def _block(title: str, told: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = markdown_table(["", "n", *columns], rows, right=range(1, 2 + len(columns)))
    return [f"## {title}", " ".join(filter(None, told)), table]


def _cell(values: Iterable[float], digits: int, span: ValueRange = ANY) -> str:
    """`41.2 [40.1, 42.3]`, the mean and its interval over seeds; without an interval for one seed, "" for none."""
    if not (given := list(values)):
        return ""
    mean, low, high = mean_interval(given, span=span)
    text = f"{mean:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None else "")
    return text.replace("-", "−")
