"""Accuracy against labels: which runs are points of which line, where they stand, and with what intervals."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from rootstock.core.evaluate.intervals import mean_interval
from rootstock.launch.report.labels import label_figures
from rootstock.launch.report.levels import Levels
from rootstock.launch.report.records import RunRecord, StageRuns


def stage(name: str, values: list[float], n: int, weights: str = "none", **more: Any) -> StageRuns:
    records = []
    for seed, value in enumerate(values):
        result = {
            "seed": seed,
            "metrics": {"test/classifier/accuracy": value},
            "intervals": {"test/classifier/accuracy": [value - 0.05, value + 0.05]},
            "data": {"n": {"train": n + seed, "test": 9}},
            "details": {},
            **more,
        }
        config = {"backbone": {"name": "resnet18", "weights": weights}}
        records.append(RunRecord(Path(name), config, {"verb": "finetune"}, result=result))
    return StageRuns(name, records)


STAGES = [
    stage("scratch_1", [0.30, 0.34, 0.35], 500),
    stage("scratch_10", [0.60, 0.62, 0.61], 5000),
    stage("simclr_1", [0.55], 500, weights="runs/x/seed-0/simclr"),
    stage("simclr_10", [0.75], 5000, weights="runs/x/seed-0/simclr"),
    stage("again", [0.56], 500, weights="runs/x/seed-0/simclr"),
]
LEVELS = {one.name: {"test": Levels(0.1, 0.12)} for one in STAGES}


def test_lines_points_and_intervals() -> None:
    (figure,) = label_figures(STAGES, LEVELS)
    assert [name for _, name in figure.legend] == [
        "resnet18 from scratch",
        "resnet18, weights of simclr",
        "resnet18, weights of simclr (2)",
    ]
    assert "Dashed: chance 10.0 %, most frequent class 12.0 %." in figure.caption
    drawn = re.findall(r'<path d="M([^"]*)" stroke="var\(--c(\d)\)" stroke-width="1.6"', figure.svg)
    spots = {int(i): [tuple(map(float, spot.split())) for spot in path.split("L ")] for path, i in drawn}
    assert [len(spots[i]) for i in range(3)] == [2, 2, 1]
    # Points of 0.33 and 0.61, and of 0.55 and 0.75: heights are linear in accuracy, places in the logarithm of images.
    (x0, y0), (x1, y1) = spots[0]
    (x2, y2), (_, y3) = spots[1]
    scale = (y0 - y1) / (0.61 - 0.33)
    assert (y2 - y3) / scale == pytest.approx(0.2, abs=0.005) and (y0 - y2) / scale == pytest.approx(0.22, abs=0.005)
    per_decade = (x1 - x0) / math.log10(5001 / 501)
    assert (x0 - x2) / per_decade == pytest.approx(math.log10(501 / 500), abs=0.01)
    ranges = [
        tuple(map(float, one)) for one in re.findall(r'd="M[\d.]+ ([\d.]+)V([\d.]+)" stroke="var\(--c0', figure.svg)
    ]
    mean, low, high = mean_interval([0.30, 0.34, 0.35], span=(0.0, 1.0))
    assert low is not None and high is not None
    assert ranges[0] == pytest.approx((y0 + (mean - low) * scale, y0 - (high - mean) * scale), abs=0.3)
    assert ">500<" in figure.svg and ">5,000<" in figure.svg


def test_few_label_protocols_of_one_probe() -> None:
    metrics = {
        f"test/few_linear-{part}/accuracy": value for part, value in (("0.01", 0.4), ("0.1", 0.7), ("5shot", 0.5))
    }
    details = {
        "test/few_linear-0.01": {"images": [10, 11, 12]},
        "test/few_linear-0.1": {"images": [100, 101]},
        "test/few_linear-5shot": {"images": [50]},
    }
    result = {"metrics": {**metrics, "test/knn/accuracy": 0.8}, "details": details, "data": {"n": {"train": 1000}}}
    record = RunRecord(Path("p"), {"backbone": {"weights": "runs/mae"}}, {"verb": "probe"}, result=result)
    (figure,) = label_figures([StageRuns("p", [record])], {})
    assert [name for _, name in figure.legend] == ["few_linear, weights of mae"]
    assert ">11<" in figure.svg and "Dashed" not in figure.caption


def test_no_figure_where_no_line_has_two_points() -> None:
    assert label_figures([STAGES[0], STAGES[2]], LEVELS) == []
    assert label_figures([stage("a", [0.5], 0), stage("b", [0.5], 10)], {}) == []
    assert label_figures([StageRuns("empty", [RunRecord(Path("x"))])], {}) == []
