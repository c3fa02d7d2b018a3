"""Accuracy by layer: from low-level to high-level features in one figure, a line for each network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .curves import Series, draw_lines
from .figures import SERIES_COLOURS, Figure, LiveLine, LivePlot, colour, in_legend
from .levels import ACCURACY, LevelsOfStages
from .records import StageRuns

# As core/evaluate/taps.py calls them, which imports torch.
_LEVEL = re.compile(r"(?:block|stage)(\d+)")
MOST_LINES, MOST_FIGURES = 2 * SERIES_COLOURS, 8  # the second ten lines are dotted
OWN_FEATURES = "own features"
ACROSS = "depth, %"


class LayerAccuracies(NamedTuple):
    """Of one run, TEST/PROTOCOL: depths of layers in per cent, from 0 to 100, accuracies in per cent, and numbers or OWN_FEATURES."""

    depths: list[float]
    values: list[float]
    layers: list[str]


def layer_accuracies(metrics: Mapping[str, Any]) -> dict[str, LayerAccuracies]:
    """By TEST/PROTOCOL, of what was probed at two blocks or stages, or more: TEST/PROTOCOL@block3/accuracy.

    Of L layers, number i lies at i / L, and the network's own features (TEST/PROTOCOL/accuracy) at the end; without these, the last layer
    does.
    """
    found = dict[str, dict[int, float]]()
    for name, value in metrics.items():
        key, _, kind = name.rpartition("/")
        probe, _, tap = key.partition("@")
        if kind == ACCURACY and (level := _LEVEL.fullmatch(tap)):
            found.setdefault(probe, {})[int(level[1])] = 100 * float(value)
    accuracies = dict[str, LayerAccuracies]()
    for probe, layers in found.items():
        if len(layers) < 2:
            continue
        numbers, pooled = sorted(layers), metrics.get(f"{probe}/{ACCURACY}")
        last = max(numbers) + (pooled is not None)
        values = [layers[number] for number in numbers]
        depths = [100 * number / last for number in numbers]
        if pooled is not None:
            depths, values = [*depths, 100.0], [*values, 100 * float(pooled)]
        names = [*map(str, numbers), *([] if pooled is None else [OWN_FEATURES])]
        accuracies[probe] = LayerAccuracies(depths, values, names)
    return accuracies


def layers_of_runs(stages: Sequence[StageRuns]) -> dict[str, list[dict[str, LayerAccuracies]]]:
    """`layer_accuracies` of each run, by the name of its stage."""
    return {
        stage.name: [layer_accuracies(record.result.get("metrics") or {}) for record in stage.records]
        for stage in stages
    }


def stages_of_probes(
    stages: Sequence[StageRuns], runs: Mapping[str, Sequence[Mapping[str, LayerAccuracies]]]
) -> dict[str, list[StageRuns]]:
    """The stages in which it was probed, by TEST/PROTOCOL, in the order of the results. runs: `layers_of_runs`."""
    probes = dict.fromkeys(probe for several in runs.values() for one in several for probe in one)
    return {probe: [stage for stage in stages if any(probe in one for one in runs[stage.name])] for probe in probes}


def levels_of_probe(probe: str, stages: Sequence[StageRuns], levels: LevelsOfStages) -> dict[str, float]:
    """Chance and the most frequent class of the probe's test, per cent, by name; of several splits, whose digits differ, the last one's."""
    test = probe.rpartition("/")[0]
    known = [levels[stage.name][test] for stage in stages if test in levels.get(stage.name, {})]
    return {name: round(100 * value, 2) for level in known for name, value in level.lines()}


def title_of(probe: str) -> str:
    """Of TEST/PROTOCOL."""
    test, _, protocol = probe.rpartition("/")
    return f"Accuracy by layer, {protocol} on {test}"


def layer_figures(stages: Sequence[StageRuns], labels: Mapping[str, str], levels: LevelsOfStages) -> list[Figure]:
    """A figure for each TEST/PROTOCOL that was probed layer by layer, tests in the order of the results; a line for each run.

    labels: of stages, by name. levels: chance and majority of each stage's tests, drawn as dashed lines. Of many stages the first twenty.
    """
    runs = layers_of_runs(stages)
    shown = list(stages_of_probes(stages, runs).items())[:MOST_FIGURES]
    return [_figure(probe, several, runs, labels, levels) for probe, several in shown]


def _figure(
    probe: str,
    stages: Sequence[StageRuns],
    runs: Mapping[str, Sequence[Mapping[str, LayerAccuracies]]],
    labels: Mapping[str, str],
    levels: LevelsOfStages,
) -> Figure:
    lines = {name: [one[probe][:2] if probe in one else None for one in several] for name, several in runs.items()}
    shown = levels_of_probe(probe, stages[:MOST_LINES], levels)
    told = [
        "Accuracy (%) of the same probe on the mean over all places of each block or stage, from the first to the last; at 100 % the "
        "network's own features, where they were probed.",
        "Dashed: " + ", ".join(f"{name} {value:.1f} %" for name, value in shown.items()) + "." if shown else "",
    ]
    return figure_by_depth(title_of(probe), told, stages, lines, labels, shown)


def figure_by_depth(
    title: str,
    told: Sequence[str],
    stages: Sequence[StageRuns],
    lines: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]] | None]],
    labels: Mapping[str, str],
    levels: Mapping[str, float],
) -> Figure:
    """A figure with a line for each run, of the first MOST_LINES stages. told: sentences below it; empty ones are left out.

    lines: by stage, of each of its runs: depths in per cent and values; None for a run without. levels: dashed lines, by name.
    """
    drawn, legend, live = list[tuple[int, Series]](), list[tuple[str, str]](), list[LiveLine]()
    for i, stage in enumerate(stages[:MOST_LINES]):
        label = labels.get(stage.name, stage.name)
        legend.append((colour(i), in_legend(label, i)))
        for record, line in zip(stage.records, lines[stage.name], strict=True):
            if line is not None:
                depths, values = line
                drawn.append((i, Series(np.array(depths), np.array(values), 1)))
                live.append(LiveLine(label, f"seed {record.seed}" if len(stage.records) > 1 else "", i, depths, values))
    several = any(len(stage.records) > 1 for stage in stages)
    svg = draw_lines(drawn, title, thin=several, across=ACROSS, levels=list(levels.values()))
    first = f"The first {MOST_LINES} of {len(stages)} networks." if len(stages) > MOST_LINES else ""
    return Figure(
        svg, title, " ".join(filter(None, [*told, first])), legend, LivePlot(ACROSS, live, list(levels.items()))
    )
