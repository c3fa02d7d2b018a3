"""A grid of a pipeline: what it stands for, written out by hand."""

import copy
from typing import Any

import pytest

from rootstock.core.config.resolve import ConfigError
from rootstock.launch.pipeline import grid
from rootstock.launch.pipeline.grid import expand
from rootstock.launch.pipeline.plan import check_pipeline
from rootstock.launch.report.results import averaged, compare, summarise

PIPELINE: dict[str, Any] = {
    "grid": {
        "task": {
            "p-a": {"data.source": "tar:p", "data.target": "tar:a"},
            "a-p": {"data.source": "tar:a", "data.target": "tar:p"},
        },
        "method": {"plain": {"method": "source_only"}, "dann": {"method": {"name": "dann"}, "optim.lr": 0.5}},
    },
    "stages": {
        "ssl_{task}": {"verb": "pretrain", "config": "ssl.yaml", "set": {"data.train": "tar:x#[:80%,seed={seed}]"}},
        "{method}_{task}": {
            "verb": "adapt",
            "config": "adapt.yaml",
            "set": {"backbone.weights": "@ssl_{task}", "optim.lr": 0.1},
        },
        "once": {"verb": "probe", "config": "probe.yaml"},
    },
    "report": {
        "rows": [
            {"label": "{method}, {task}", "stage": "{method}_{task}"},
            {"label": "{method}, mean", "stage": "{method}_{task}", "over": ["task"]},
            {"label": "once", "stage": "once"},
        ],
        "comparisons": [
            {"label": "gain on {task}", "a": "dann, {task}", "b": "plain, {task}"},
            {"label": "gain", "a": "dann, mean", "b": "plain, mean"},
        ],
    },
}


def expanded(**changed: Any) -> tuple[dict[str, Any], list[str]]:
    config, problems = copy.deepcopy({**PIPELINE, **changed}), list[str]()
    expand(config, problems)
    return config, problems


def test_a_stage_stands_once_for_each_name_and_takes_its_overrides_before_its_own() -> None:
    config, problems = expanded()
    assert not problems
    assert list(config["stages"]) == ["ssl_p-a", "ssl_a-p", "plain_p-a", "dann_p-a", "plain_a-p", "dann_a-p", "once"]
    assert config["stages"]["dann_a-p"]["set"] == {
        "data.source": "tar:a",
        "data.target": "tar:p",
        "method": {"name": "dann"},
        "optim.lr": 0.1,  # the stage's own
        "backbone.weights": "@ssl_a-p",
    }
    assert config["stages"]["ssl_p-a"]["set"]["data.train"] == "tar:x#[:80%,seed={seed}]"
    assert config["stages"]["once"] == PIPELINE["stages"]["once"]


def test_rows_and_comparisons_stand_once_for_each_name_or_show_the_mean_over_an_axis() -> None:
    report = expanded()[0]["report"]
    labels = [row["label"] for row in report["rows"]]
    assert labels == ["plain, p-a", "dann, p-a", "plain, a-p", "dann, a-p", "plain, mean", "dann, mean", "once"]
    assert report["rows"][5] == {"label": "dann, mean", "stage": "dann_p-a", "stages": ["dann_p-a", "dann_a-p"]}
    assert [entry["a"] for entry in report["comparisons"]] == ["dann, p-a", "dann, a-p", "dann, mean"]


def test_comparisons_that_would_say_nothing_are_left_out() -> None:
    """Of a row with itself, and what a comparison above has, such as a primary one; what was written without a place stays."""
    primary = {"label": "of p-a", "a": "dann, p-a", "b": "plain, p-a", "primary": True}
    more = [
        {"label": "{method} minus plain, {task}", "a": "{method}, {task}", "b": "plain, {task}"},
        {"label": "once more", "a": "dann, p-a", "b": "plain, p-a"},
        {"label": "{task} beyond", "a": "dann, p-a", "b": "plain, p-a", "beyond": ["dann, {task}", "plain, {task}"]},
        {"label": "no rows on {task}"},
    ]
    config, problems = expanded(report={**PIPELINE["report"], "comparisons": [primary, *more]})
    assert not problems
    assert [one["label"] for one in config["report"]["comparisons"]] == [
        "of p-a", "dann minus plain, a-p", "once more", "a-p beyond", "no rows on p-a"
    ]  # fmt: skip


def test_a_pipeline_without_a_grid_is_left_as_it_is() -> None:
    config, problems = expanded(grid={})
    assert not problems
    assert config["stages"] == PIPELINE["stages"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grid": {"seed": {"a": {}}}}, "grid.seed: an axis is named by letters, digits and _, and not seed"),
        ({"grid": {"task": {}}}, "grid.task: expected at least one name"),
        ({"grid": {"task": {"a/b": {}}}}, "grid.task.a/b: a name becomes part of a folder"),
        ({"stages": {"{tsk}": {}}}, "stages.{tsk}: the grid has no axis tsk; did you mean task?"),
        ({"stages": {"x_{task}": {}, "x_p-a": {}}}, "stages.x_p-a: x_p-a stands twice"),
        (
            {"report": {"rows": [{"label": "m", "stage": "{method}_p-a", "over": ["task"]}], "comparisons": []}},
            "over names task",
        ),
        (
            {"report": {"rows": [{"label": "m", "stage": "{method}_{task}", "over": 3}], "comparisons": []}},
            "over: expected a list of axes, got 3",
        ),
    ],
)
def test_mistakes_are_named(changed: dict[str, Any], message: str) -> None:
    _, problems = expanded(**changed)
    assert any(message in problem for problem in problems), problems


def test_a_grid_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MOST_STAGES", 3)
    assert any("more than 3 stages" in problem for problem in expanded()[1])


def test_the_mean_over_stages_is_taken_within_each_seed() -> None:
    def result(seed: int, value: float, seen: int = 0) -> dict[str, Any]:
        metrics = {"target/classifier/accuracy": value, f"only/{value}/accuracy": 1.0}
        return {"seed": seed, "metrics": metrics, "selection": "last", "seen_unlabelled": {"adapt": seen}}

    first, second = [result(0, 0.2), result(1, 0.6)], [result(0, 0.4, seen=3), result(1, 0.7)]
    row = summarise(averaged([first, second]), label="mean", stage="a")
    assert row["values"] == pytest.approx([0.3, 0.65])
    assert row["kind"] == "transductive"
    other = summarise(averaged([first]), label="one", stage="b")
    assert compare(row, other, "gain")["values"] == pytest.approx([0.1, 0.05])


def test_errors_of_a_pipeline_with_a_grid_reach_the_user(tmp_path: Any) -> None:
    path = tmp_path / "grid.yaml"
    stages = "stages: {'{task}': {verb: probe, config: none.yaml}, '{typo}': {verb: probe, config: x}}"
    path.write_text(f"run: {{dir: out}}\ngrid: {{task: {{a: {{}}}}}}\n{stages}\n")
    with pytest.raises(ConfigError, match="the grid has no axis typo"):
        check_pipeline(path, [], lambda *_: {})
