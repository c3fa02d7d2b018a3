"""Gradients by layer on the page: where points lie, which rows are shown, and runs without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rootstock.core.train.layer_gradients import ROW
from rootstock.launch.report.curves import LAYER_GRADIENTS, curves
from rootstock.launch.report.layer_gradients import layer_gradient_figures, layer_gradients
from rootstock.launch.report.records import RunRecord, StageRuns


def row(step: int, *lengths: float, head: float = 1.0) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, **{f"{ROW}{i:03d}": x for i, x in enumerate(lengths)}, f"{ROW}head": head}


def stage(name: str, *runs: list[dict[str, Any]]) -> StageRuns:
    return StageRuns(name, [RunRecord(Path(name), rows=rows, result={"seed": i}) for i, rows in enumerate(runs)])


def test_depths_and_logarithms() -> None:
    assert ROW == LAYER_GRADIENTS
    assert layer_gradients(row(1, 1e-3, 1e-2, head=10.0)) == ([0.0, 50.0, 100.0], pytest.approx([-3.0, -2.0, 1.0]))
    assert layer_gradients(row(1, 0.0, 0.1))[0] == [50.0, 100.0]  # no logarithm of 0
    assert layer_gradients({"step": 1, "loss": 0.5}) == ([], [])


def test_the_first_and_the_last_logged_step_of_each_run() -> None:
    rows = [
        {"step": 1, "loss": 2.0},
        row(2, 1e-3, 1e-2),
        row(4, 1e-1, 1e-1),
        {"step": 4, "eval/test/knn/accuracy": 0.5},
    ]
    stages = [stage("plain", rows, rows[:2]), stage("none", [{"step": 1, "loss": 2.0}]), stage("residual", rows)]
    first, last = layer_gradient_figures(stages, {"plain": "20 layers, plain"})
    assert [name for _, name in first.legend] == ["20 layers, plain", "residual"]
    assert first.live is not None and last.live is not None
    assert [(line.key, line.run, list(line.y)) for line in last.live.lines] == [
        ("20 layers, plain", "seed 0", pytest.approx([-1, -1, 0])),
        ("20 layers, plain", "seed 1", pytest.approx([-3, -2, 0])),
        ("residual", "", pytest.approx([-1, -1, 0])),
    ]
    assert "at step 2:" in first.caption and "at step 2 to 4:" in last.caption
    assert layer_gradient_figures(stages[1:2], {}) == []
    assert [figure.title for figure in curves([rows])] == [
        "Training loss",
        "Online evaluation",
    ]  # no panel for each layer
