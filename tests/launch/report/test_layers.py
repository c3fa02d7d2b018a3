"""Accuracy by layer: which metrics make a line, where its points lie, and that a page shows it with chance and majority."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rootstock.core.evaluate.taps import LEVEL
from rootstock.launch.report.layers import layer_accuracies, layer_figures
from rootstock.launch.report.levels import Levels
from rootstock.launch.report.records import RunRecord, StageRuns


def metrics(*accuracies: float, pooled: float | None = None, test: str = "test", tap: str = "stage") -> dict[str, Any]:
    own = {} if pooled is None else {f"{test}/linear/accuracy": pooled, f"{test}/linear/f1": 0.0}
    return {**own, **{f"{test}/linear@{tap}{i}/accuracy": value for i, value in enumerate(accuracies)}}


def stage(name: str, *found: dict[str, Any]) -> StageRuns:
    return StageRuns(name, [RunRecord(Path(name), result={"seed": i, "metrics": m}) for i, m in enumerate(found)])


def test_layers_lie_between_the_first_and_the_networks_own_features() -> None:
    found = layer_accuracies({**metrics(0.1, 0.3, 0.2, 0.4, pooled=0.5), "test/linear@cls/accuracy": 0.9})
    assert list(found) == ["test/linear"]
    assert found["test/linear"].depths == [0, 25, 50, 75, 100] and found["test/linear"].values == [10, 30, 20, 40, 50]
    twelve = layer_accuracies(metrics(*(i / 20 for i in range(13)), tap="block"))["test/linear"]  # block10 after block9
    assert twelve.depths[-1] == 100 and twelve.values == sorted(twelve.values) and len(twelve.values) == 13
    assert layer_accuracies(metrics(0.5, pooled=0.5)) == {} == layer_accuracies({"test/knn/accuracy": 1.0})
    assert LEVEL.fullmatch("block3") and LEVEL.fullmatch("stage0")  # the names of taps


def test_a_figure_for_each_test_and_a_line_for_each_run() -> None:
    stages = [
        stage("net", metrics(0.2, 0.4, pooled=0.6), metrics(0.3, 0.5, pooled=0.7)),
        stage("pixels", {"test/linear/accuracy": 0.3}),
        stage("vit", {**metrics(0.1, 0.2, tap="block"), **metrics(0.1, 0.1, tap="block", test="noisy")}),
    ]
    levels = {"net": {"test": Levels(0.1, 0.12)}, "pixels": {}, "vit": {}}
    clean, noisy = layer_figures(stages, {"net": "ResNet"}, levels)
    assert clean.title == "Accuracy by layer, linear on test" and noisy.title.endswith("on noisy")
    assert [name for _, name in clean.legend] == ["ResNet", "vit"] and [name for _, name in noisy.legend] == ["vit"]
    assert clean.live is not None and clean.live.levels == [("chance", 10.0), ("most frequent class", 12.0)]
    assert [(line.key, line.run, list(line.y)) for line in clean.live.lines] == [
        ("ResNet", "seed 0", [20, 40, 60]), ("ResNet", "seed 1", [30, 50, 70]), ("vit", "", [10, 20]),
    ]  # fmt: skip
    assert "Dashed: chance 10.0 %, most frequent class 12.0 %." in clean.caption and "Dashed" not in noisy.caption
    # Higher accuracies stand higher, and all within the panel.
    path = re.findall(r'<path d="M([^"]*)" stroke="var\(--c0\)"', str(clean.svg))[0]
    heights = [float(point.split()[1]) for point in path.split("L ")]
    assert len(heights) == 3 and heights == sorted(heights, reverse=True) and min(heights) > 0
    assert layer_figures(stages[1:2], {}, levels) == []
