"""Chance and the most frequent class beside accuracies: from confusion matrices, shared by tests of the same images."""

from pathlib import Path
from typing import Any

import pytest

from rootstock.launch.report.curves import curves
from rootstock.launch.report.levels import (
    Levels,
    level_words,
    levels_for,
    levels_of,
    marks_of_rows,
    slice_levels,
    what_rows_measure,
)
from rootstock.launch.report.records import RunRecord, StageRuns
from rootstock.launch.report.tables import results_tables


def stage(name: str, *results: dict[str, Any], **chart: Any) -> StageRuns:
    return StageRuns(name, [RunRecord(Path(name), result=result, map=chart) for result in results])


def detailed(confusion: list[list[int]], digest: str = "d", **more: Any) -> dict[str, Any]:
    return {"details": {"a/knn": {"confusion": confusion}}, "data": {"split": {"test.a": digest}}, **more}


def test_they_are_counted_over_seeds_and_found_by_the_images_elsewhere() -> None:
    probe = stage("probe", detailed([[3, 1, 0], [0, 2, 0], [1, 1, 2]]), detailed([[1, 0, 0], [2, 2, 0], [0, 0, 4]]))
    # A pretraining has no matrix: it takes those of the same images; other images have none.
    pretrained = stage("ssl", {"data": {"split": {"a": "d", "train": "t"}}})
    elsewhere = stage("else", {"data": {"split": {"a": "e"}}})
    found = levels_of([pretrained, probe, elsewhere])
    assert found["probe"]["a"] == Levels(1 / 3, 8 / 19) == found["ssl"]["a"]
    assert found["else"] == {} and "train" not in found["ssl"]
    assert (
        levels_for(found["probe"], "a/knn/accuracy")
        == found["probe"]["a"]
        == levels_for(found["ssl"], "eval/a/knn/accuracy")
    )
    assert levels_for(found["probe"], "a/knn/f1") is None and levels_for(found["probe"], "b/knn/accuracy") is None


def test_an_open_set_has_none_and_a_map_says_the_majority_only_of_all_images() -> None:
    matrix = [[3, 1], [0, 2]]
    assert levels_of([stage("open", detailed(matrix, metrics={"a/knn/hos": 0.5}))])["open"] == {}
    chart = {"classes": ["x", "y", "z"], "label": [0, 1, 1, 2], "domain": [0, 0, 0, 1], "domains": ["a", "b"]}
    found = levels_of([stage("m", {"data": {"n": {"a": 3, "b": 10}}}, **chart)])["m"]
    assert found == {"a": Levels(1 / 3, 2 / 3), "b": Levels(1 / 3, None)}
    assert level_words(found) == (
        "a: chance is 33.3 %, always the most frequent class 66.7 %; b: chance is 33.3 %."
    )  # fmt: skip


def test_rows_over_tasks_have_the_levels_of_all_tasks() -> None:
    """Two tasks whose tests have one name and other priors share chance alone; in whatever order rows stand."""
    levels = {"a01": {"t": Levels(0.25, 0.82)}, "a100": {"t": Levels(0.25, 0.3)}, "three": {"t": Levels(1 / 3, 0.5)}}
    mean = {"stage": "a01", "stages": ["a01", "a100"], "metric": "t/classifier/accuracy"}
    first, last, other = ({"stage": name, "metric": "t/classifier/accuracy"} for name in levels)
    for rows in ([mean], [mean, first], [first, last], [last, mean, first]):
        assert what_rows_measure(rows, levels)[0].endswith("Chance is 25.0 %."), rows
        assert marks_of_rows(rows, levels) is None
    assert what_rows_measure([first], levels)[0].endswith("Chance is 25.0 %, always the most frequent class 82.0 %.")
    assert marks_of_rows([first, {**first, "stages": ["a01", "a01"]}], levels) == Levels(0.25, 0.82)
    assert "hance" not in "".join(what_rows_measure([mean, other], levels))


def test_they_are_drawn_where_the_accuracy_is() -> None:
    rows = [{"step": step, "eval/a/knn/accuracy": 0.6 + step / 100} for step in range(5)]
    levels = {"a": Levels(0.1, 0.25)}
    (figure,) = curves([rows], levels=levels)
    assert (
        figure.svg.count("stroke-dasharray") == 1
        and "Dashed: chance 10.0 %, most frequent class 25.0 %." in figure.caption
    )
    assert figure.live is not None and figure.live.levels == [("chance", 10.0), ("most frequent class", 25.0)]
    dashed = figure.svg.partition('stroke-dasharray="4 3"')[0].rpartition('d="')[2]
    heights = [float(part.partition("H")[0].split()[1]) for part in dashed.split("M")[1:]]
    assert len(heights) == 2 and all(0 < height < 210 for height in heights) and heights[0] > heights[1]
    assert "stroke-dasharray" not in curves([rows])[0].svg
    row = {
        "label": "r", "stage": "s", "metric": "a/knn/accuracy", "n": 1, "mean": 0.3, "low": None, "high": None, "values": [0.3],
        "kind": "inductive", "selection": ["last"], "bootstrap": [0.05, 0.5],
    }  # fmt: skip
    (table,) = results_tables([row], {}, {"s": levels})
    assert [name for _, name in table.levels] == ["chance", "most frequent class"]
    (first, low, _), (last, high, _) = table.ticks[0], table.ticks[-1]
    expected = [
        first + (100 * value - float(low)) * (last - first) / (float(high) - float(low)) for value in (0.1, 0.25)
    ]
    assert [at for at, _ in table.levels] == pytest.approx(expected, abs=0.02)
    assert table.foot[0].endswith("higher is better. Chance is 10.0 %, always the most frequent class 25.0 %.")
    assert results_tables([{**row, "metric": "a/knn/f1"}], {}, {"s": levels})[0].levels == []


def test_chance_stands_beside_the_accuracy_of_training_batches() -> None:
    rows = [{"step": step, "train_accuracy": step / 5, "domain_accuracy": 0.5} for step in range(5)]
    domain, train = sorted(curves([rows], levels={"a": Levels(0.25, 0.4)}), key=lambda figure: figure.title)
    assert "Dashed: chance 0.250." in train.caption and train.svg.count("stroke-dasharray") == 1
    assert train.live is not None and train.live.levels == [("chance", 0.25)]
    assert "Dashed" not in domain.caption  # that of two domains, whatever the classes
    several = {"a": Levels(0.25, 0.4), "b": Levels(0.5, None)}
    assert all("Dashed" not in figure.caption for figure in curves([rows], levels=several))


def test_chance_stands_beside_the_accuracy_of_a_method_with_turns() -> None:
    rows = [{"step": step, "turn0/source_accuracy": step / 5, "turn1/loss": 0.5} for step in range(5)]
    source = next(one for one in curves([rows], levels={"a": Levels(0.25, 0.4)}) if "accuracy" in one.title)
    assert "Dashed: chance 0.250." in source.caption and source.svg.count('stroke-dasharray="4 3"') == 1


def test_held_out_images_have_their_own_levels_and_words() -> None:
    keys = ("accuracy", "raw_accuracy", "loss", "raw_loss")
    rows = [{"step": step, **{f"held_out/{key}": 0.1 + step / 10 for key in keys}} for step in range(5)]
    results = [{"held_out": {"per_class": [3, 1, 0, 0]}}, {"held_out": {"per_class": [2, 2, 0, 0]}}]
    own = slice_levels(stage("s", *results))
    assert own == {"held_out/": Levels(0.25, 0.625)} and slice_levels(stage("s", results[0], {"metrics": {}})) == {}
    accuracy, *losses = curves([rows], levels={"a": Levels(0.25, 0.4), **own})
    assert accuracy.title == "Accuracy on held-out training images" and len(accuracy.legend) == 2
    assert "Dashed: chance 25.0 %, most frequent class 62.5 %." in accuracy.caption and "held out" in accuracy.caption
    assert accuracy.svg.count('stroke-dasharray="4 3"') == 1
    assert [one.title.partition(" on ")[0] for one in losses] == ["Loss", "Loss"]
    assert all("cross-entropy" in one.caption and "What the training minimises" not in one.caption for one in losses)
    # A run that is not at its end has counted no classes; chance is that of its tests.
    assert "Dashed: chance 25.0 %." in curves([rows], levels={"a": Levels(0.25, 0.4)})[0].caption
    assert "Dashed" not in curves([rows])[0].caption
