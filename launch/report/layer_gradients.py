"""Gradients by layer: how much of the loss reaches each layer of a network, at the first and at the last logged step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .figures import Figure
from .layers import MOST_LINES, figure_by_depth
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


def logged_gradients(stages: Sequence[StageRuns]) -> dict[str, list[list[Mapping[str, Any]]]]:
    """The rows of each run that have gradients by layer, by the name of its stage."""
    return {
        stage.name: [[r for r in record.rows if layer_gradients(r)[0]] for record in stage.records] for stage in stages
    }


def gradients_at(which: str) -> str:
    """The title: of the first or the last logged step."""
    return f"Gradients by layer, {which} logged step"


def steps_in_words(rows: Iterable[Mapping[str, Any]]) -> str:
    """`at step 1`, `at step 770 to 780`."""
    steps = [int(row["step"]) for row in rows]
    return f"at step {min(steps)}" + ("" if min(steps) == max(steps) else f" to {max(steps)}")


def layer_gradient_figures(stages: Sequence[StageRuns], labels: Mapping[str, str]) -> list[Figure]:
    """Two figures, of the first and the last logged step, with a line for each run that logged gradients by layer; none without such runs.

    labels: of stages, by name. Of many stages the first twenty.
    """
    rows = logged_gradients(stages)
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
    lines = {name: [layer_gradients(row[place]) if row else None for row in several] for name, several in rows.items()}
    drawn = [row[place] for stage in stages[:MOST_LINES] for row in rows[stage.name] if row]
    told = (
        "log10 of the length of each layer's gradient before clipping, from the first layer to the head, "
        f"{steps_in_words(drawn)}: 1 lower is ten times less."
    )
    return figure_by_depth(gradients_at(which), [told], stages, lines, labels, {})
