"""The numbers behind the figures by layer, as Markdown: means over seeds counted by hand, every network, and a pipeline's table.md."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from rootstock.launch.report.layer_tables import layer_tables, tables_of_pipeline
from rootstock.launch.report.layers import layer_figures
from rootstock.launch.report.levels import Levels
from rootstock.launch.report.records import RunRecord, StageRuns
from rootstock.tests.launch.report.test_layer_gradients import row
from rootstock.tests.launch.report.test_layer_gradients import stage as logged
from rootstock.tests.launch.report.test_layers import metrics, stage

T = 12.706204736  # the 97.5 % quantile of Student's t with one degree of freedom


def lines(table: str) -> list[list[str]]:
    """The cells of each line but the rule's."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [found[0], *found[2:]]


def spread(first: float, second: float, digits: int, least: float = -1e9) -> str:
    half = T * stdev([first, second]) / 2**0.5
    middle = mean([first, second])
    ends = f"[{max(least, middle - half):.{digits}f}, {middle + half:.{digits}f}]"
    return f"{middle:.{digits}f} {ends}".replace("-", "−")


def test_accuracies_are_means_over_seeds_by_number_of_the_layer() -> None:
    stages = [
        stage("net", metrics(0.2, 0.4, pooled=0.6), metrics(0.21, 0.4, pooled=0.62)),
        stage("pixels", {"test/linear/accuracy": 0.3}),
        stage("vit", {**metrics(*(i / 20 for i in range(12)), tap="block"), **metrics(0.1, 0.1, tap="block", test="noisy")}),
    ]  # fmt: skip
    levels = {"net": {"test": Levels(0.1, 0.12)}, "pixels": {}, "vit": {}}
    clean, told, table, noisy, other, last = layer_tables(stages, {"net": "ResNet"}, levels)
    assert (clean, noisy) == ("## Accuracy by layer, linear on test", "## Accuracy by layer, linear on noisy")
    assert told.endswith("For comparison: chance 10.0 %, most frequent class 12.0 %.") and "For comparison" not in other
    head, resnet, vit = lines(table)
    assert head == ["", "n", *map(str, range(12)), "own features"]
    assert resnet == ["ResNet", "2", spread(20, 21, 1, 0.0), "40.0 [40.0, 40.0]", *[""] * 10, spread(60, 62, 1)]
    assert vit == ["vit", "1", *(f"{5 * i:.1f}" for i in range(12)), ""]
    assert lines(last) == [["", "n", "0", "1"], ["vit", "1", "10.0", "10.0"]]
    assert layer_tables(stages[1:2], {}, levels) == []


def test_gradients_are_of_the_layers_nearest_to_each_depth() -> None:
    lengths = [10.0**-k for k in range(10)]  # layer k of ten lies at 10 k per cent, the head at 100
    first, later = row(1, *lengths, head=100.0), row(9, *lengths, head=1e4)
    stages = [
        logged("deep", [first, later], [row(1, *lengths, head=1e4)]),
        logged("none", [{"step": 1, "loss": 2.0}]),
        logged("flat", [row(2, 1e-3, head=0.0)]),
    ]
    at_first, told, table, at_last, other, last = layer_tables(stages, {"flat": "one layer"}, {})
    assert (at_first, at_last) == (
        "## Gradients by layer, first logged step",
        "## Gradients by layer, last logged step",
    )
    assert "clipping, at step 1 to 2: of" in told and "clipping, at step 1 to 9: of" in other
    same = [f"{value} [{value}, {value}]" for value in ("0.00", "−2.00", "−5.00", "−7.00")]
    assert lines(table) == [
        ["", "n", "0 %", "25 %", "50 %", "75 %", "head"],
        ["deep", "2", *same, spread(2, 4, 2)],
        ["one layer", "1", *["−3.00"] * 4, ""],
    ]
    assert lines(last)[1] == ["deep", "2", *same, "4.00 [4.00, 4.00]"]


def test_no_network_is_left_out_of_tables_and_up_to_twenty_of_figures() -> None:
    stages = [stage(f"net{i}", metrics(0.1, 0.2, pooled=i / 30)) for i in range(23)]
    (figure,) = layer_figures(stages[:11], {}, {})
    assert [name for _, name in figure.legend] == [*(f"net{i}" for i in range(10)), "net10 (dotted)"]
    assert str(figure.svg).count("stroke-dasharray") == 1 and "The first" not in figure.caption
    assert figure.legend[0][0] == figure.legend[10][0]
    (figure,) = layer_figures(stages, {}, {})
    assert len(figure.legend) == 20 and figure.caption.endswith("The first 20 of 23 networks.")
    assert [line[0] for line in lines(layer_tables(stages, {}, {})[2])[1:]] == [one.name for one in stages]


def test_of_a_pipelines_folder_with_the_labels_of_its_rows(tmp_path: Path) -> None:
    def write(folder: Path, config: dict[str, Any], result: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "result.json").write_text(json.dumps(result))

    rows = [{"label": "ResNet", "stage": "net"}, {"label": "ResNet, rotated", "stage": "net"}]
    write(tmp_path / "table", {"seeds": [0, 1], "stages": {"net": {}}}, {"task": "pipeline", "rows": rows})
    for seed in (0, 1):
        found = {"task": "probe", "seed": seed, "metrics": metrics(0.2, 0.4)}
        write(tmp_path / "table" / f"seed-{seed}" / "net", {"seed": seed}, found)
    _, _, table = tables_of_pipeline(tmp_path / "table")
    assert lines(table)[1] == ["ResNet", "2", "20.0 [20.0, 20.0]", "40.0 [40.0, 40.0]"]
    stages = [StageRuns("net", [RunRecord(Path("net"), result={"metrics": {"test/knn/accuracy": 0.5}})])]
    assert layer_tables(stages, {}, {}) == []
