"""Gradients by layer: how much of the loss reaches each layer of a network, at the first and at the last logged step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .curves import Series, draw_lines
from .figures import Figure, LiveLine, LivePlot, colour
from .layers import ACROSS, MOST_LINES
from .meanings import LAYER_GRADIENTS
from .records import StageRuns


def layer_gradients(row: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """(depths in per cent, log10 of the lengths) of a row of metrics.jsonl; both empty without any.

    Of L numbered layers, number i lies at i / L, and what follows them, the head, at the end. Layers whose gradient is 0 are left out.
    """
    found = {key.removeprefix(LAYER_GRADIENTS): row[key] for key in row if key.startswith(LAYER_GRADIENTS)}
    numbers = sorted(int(name) for name in found if name.isdigit())
    if not numbers:
        return [], []
    last = numbers[-1] + 1
    placed = [(100 * n / last, found[f"{n:03d}"]) for n in numbers]
    placed += [(100.0, found["head"])] if "head" in found else []
    shown = [(depth, math.log10(value)) for depth, value in placed if 0 < value < math.inf]
    return [depth for depth, _ in shown], [value for _, value in shown]


def layer_gradient_figures(stages: Sequence[StageRuns], labels: Mapping[str, str]) -> list[Figure]:
    """Two figures, of the first and the last logged step, with a line for each run that logged gradients by layer; none without such runs.

    labels: of stages, by name. Of many stages the first ten.
    """
    rows = {
        stage.name: [[r for r in record.rows if layer_gradients(r)[0]] for record in stage.records] for stage in stages
    }
    shown = [stage for stage in stages if any(rows[stage.name])]
    if not shown:
        return []
    return [_figure(which, place, shown, rows, labels) for which, place in (("first", 0), ("last", -1))]


def _figure(
    which: str,
    place: int,
    stages: Sequence[StageRuns],
    rows: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    labels: Mapping[str, str],
) -> Figure:
    drawn, legend, live = list[tuple[int, Series]](), list[tuple[str, str]](), list[LiveLine]()
    steps = list[int]()
    for i, stage in enumerate(stages[:MOST_LINES]):
        label = labels.get(stage.name, stage.name)
        legend.append((colour(i), label))
        for record, logged in zip(stage.records, rows[stage.name], strict=True):
            if logged:
                depths, values = layer_gradients(logged[place])
                steps.append(int(logged[place]["step"]))
                drawn.append((i, Series(np.array(depths), np.array(values), 1)))
                live.append(LiveLine(label, f"seed {record.seed}" if len(stage.records) > 1 else "", i, depths, values))
    title = f"Gradients by layer, {which} logged step"
    when = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
    told = [
        f"log10 of the length of each layer's gradient before clipping, from the first layer to the head, at step {when}: 1 lower is ten "
        "times less.",
        f"The first {MOST_LINES} of {len(stages)} networks." if len(stages) > MOST_LINES else "",
    ]
    svg = draw_lines(drawn, title, thin=any(len(stage.records) > 1 for stage in stages), across=ACROSS)
    return Figure(svg, title, " ".join(filter(None, told)), legend, LivePlot(ACROSS, live, []))
