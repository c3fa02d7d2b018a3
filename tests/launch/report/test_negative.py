"""Negative transfer in a table: which rows are a row's control and source-only, and when a row is worse; and the distances of priors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rootstock.core.evaluate.predictions import ScoredImages
from rootstock.launch.pipeline.table import tabulate
from rootstock.launch.report.answers import Answers
from rootstock.launch.report.gains import gain_words
from rootstock.launch.report.markdown import pipeline_markdown
from rootstock.launch.report.negative import UNADAPTED, baselines_of, negative_lines
from rootstock.launch.report.priors import priors_cell, priors_of
from rootstock.launch.report.tables import results_tables

DATA = {"source": "a", "target": "b", "test": {"target": "c"}, "size": 32, "views": {"name": "digits"}}
DANN = {"name": "dann", "reversal": 1.0, "trade_off": 1.0, "hidden": 8, "mic": None}
BASE = {"data": DATA, "backbone": {"name": "net", "weights": "none"}, "optim": {"lr": 0.1}, "label_shift": {}}
SOURCE_ONLY = {"name": "source_only", "mic": None}


def config(method: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**BASE, "method": method, **more}


def test_a_control_differs_in_a_transfer_weight_of_0_alone() -> None:
    found = baselines_of(
        {
            "dann": config(DANN),
            "control": config({**DANN, "reversal": 0.0}),
            "narrow": config({**DANN, "reversal": 0.0, "hidden": 4}),
            "slow": config({**DANN, "trade_off": 0.5}),
            "other lr": config({**DANN, "reversal": 0.0}, optim={"lr": 0.2}),
            "mcc": config({"name": "mcc", "trade_off": 0.0}),
            "mic": config({**DANN, "mic": {"weight": 1.0, "ratio": 0.7}}),
            "mic off": config({**DANN, "mic": {"weight": 0.0, "ratio": 0.7}}),
            "source": config(SOURCE_ONLY),
            "plain views": config(SOURCE_ONLY, data={**DATA, "views": {"name": "none"}}),
            "other net": config(SOURCE_ONLY, backbone={"name": "net", "weights": "simclr"}),
            "other task": config(SOURCE_ONLY, data={**DATA, "target": "d"}),
            "pretrain": {"data": {"train": "a"}, "method": {"name": "simclr"}},
        }
    )
    assert found["dann"] == {"control": "control", "source": "source-only"}
    assert found["mic"]["mic off"] == "control" and "dann" not in found["mic"]
    assert "control" not in found["control"] and found["source"] == {}
    assert "pretrain" not in found


@pytest.mark.parametrize(
    ("theirs", "kind"),
    [
        ({}, "source-only"),
        ({"data": {**DATA, "selection": "oracle"}}, "source-only"),
        ({"data": {**DATA, "views": {"name": "targeted"}}}, ""),
        ({"data": {**DATA, "crop": 0.9}}, ""),
        ({"data": {**DATA, "corrupt": {"name": "contrast"}}}, ""),
        ({"optim": {"lr": 0.1, "duration": 900}}, ""),
        ({"method": {**SOURCE_ONLY, "bottleneck": 8}}, "source-only"),
    ],
)
def test_source_only_is_matched_in_pictures_augmentation_backbone_and_steps(theirs: dict[str, Any], kind: str) -> None:
    """What an augmentation, a corruption of the target or more steps win is not what a method lost."""
    fixmatch = config({"name": "fixmatch", "mic": None}, data={**DATA, "strong": {"name": "digits"}})
    found = baselines_of({"fixmatch": fixmatch, "source": {**config(SOURCE_ONLY), **theirs}})
    assert found["fixmatch"].get("source", "") == kind


@pytest.mark.parametrize(
    ("theirs", "kind"),
    [
        ({}, UNADAPTED),
        ({"data": {**DATA, "order": "sorted"}}, UNADAPTED),
        ({"data": {**DATA, "corrupt": {"name": "contrast"}}}, ""),
        ({"backbone": {"name": "net", "weights": "other"}}, ""),
        ({"optim": {"lr": 0.1, "duration": 5}}, ""),
        ({"method": {**SOURCE_ONLY, "keep_head": False}}, ""),
    ],
)
def test_a_classifier_as_it_was_trained_is_a_baseline_whatever_the_rate(theirs: dict[str, Any], kind: str) -> None:
    tent = config({"name": "tent", "mic": None}, optim={"lr": 0.001, "duration": "1ep"})
    source = config({**SOURCE_ONLY, "keep_head": True}, optim={"lr": 0.1, "duration": 0})
    assert baselines_of({"tent": tent, "source": {**source, **theirs}})["tent"].get("source", "") == kind


def test_what_is_predicted_online_is_compared_with_the_classifier_as_it_was_trained() -> None:
    online = [{**one, "metrics": {"target/online/accuracy": 0.5}} for one in results([0.0] * 3)]
    rows = [
        {"label": "source", "stage": "source", "metric": "target/classifier/accuracy"},
        {"label": "tent", "stage": "tent", "metric": "target/online/accuracy"},
    ]
    report = {"rows": rows, "columns": {}, "comparisons": []}
    found = {"source": results([0.7, 0.71, 0.69]), "tent": online}
    (line,) = negative_lines(tabulate(report, found, baselines={"tent": {"source": UNADAPTED}})["rows"])
    assert line.startswith(
        "Negative transfer: tent is worse than the classifier as it was trained (source), −20.0 points"
    )
    assert negative_lines(tabulate(report, found, baselines={"tent": {"source": "source-only"}})["rows"]) == []


def results(accuracies: list[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"task": "adapt", "seed": seed, "metrics": {"target/classifier/accuracy": value}, "seen_unlabelled": {}, **more}
        for seed, value in enumerate(accuracies)
    ]


BASELINES = {"dann": {"control": "control", "source": "source-only"}}


def table(dann: list[float], control: list[float], source: list[float], **more: Any) -> dict[str, Any]:
    rows = [{"label": name, "stage": name} for name in ("source", "control", "dann")]
    found = {"dann": results(dann, **more), "control": results(control), "source": results(source)}
    report = {"rows": rows, "columns": {}, "comparisons": []}
    return tabulate(report, found, baselines=BASELINES)


CONTROL = [0.70, 0.50, 0.60, 0.65]


def test_a_row_that_is_worse_by_its_paired_interval_is_said_to_be() -> None:
    dann = [value - 0.05 - 0.001 * k for k, value in enumerate(CONTROL)]
    found = table(dann, CONTROL, [value - 0.2 for value in dann])
    assert [one["over"] for one in found["rows"][2]["negative_transfer"]] == ["control"]
    assert not any("negative_transfer" in row for row in found["rows"][:2])
    (line,) = negative_lines(found["rows"])
    assert line.startswith(
        "Negative transfer: dann is worse than its control, −5.2 points (95 % interval [−5.4, −4.9], 4 paired seeds"
    )
    assert f"- {line}" in pipeline_markdown(found, "rootstock run x")


@pytest.mark.parametrize(
    "dann", [[value + 0.05 for value in CONTROL], [0.69, 0.52, 0.59, 0.64]], ids=["better", "not sure"]
)
def test_otherwise_nothing_is_said(dann: list[float]) -> None:
    assert negative_lines(table(dann, CONTROL, [0.1] * 4)["rows"]) == []
    one = table([0.1], [0.9], [0.9])
    assert negative_lines(one["rows"]) == []  # one seed has no interval


def answered(rights: list[list[int]], test: str = "target/classifier") -> list[dict[str, Answers]]:
    """Of each seed, the answers of a run: which of its images are right."""
    found = []
    for right in rights:
        keys, labels = np.arange(len(right)), np.zeros(len(right), dtype=np.int64)
        images = ScoredImages(keys, labels, ("cat", "dog"))
        found.append(
            {test: Answers(images, "logits", np.array(right, dtype=np.float64), 1 - np.array(right), None, None)}
        )
    return found


@pytest.mark.parametrize(("images", "said"), [(14, False), (700, True)])
def test_two_seeds_that_lose_as_many_of_a_few_images_show_nothing(images: int, said: bool) -> None:
    """Their differences are equal, so that the interval over seeds has no width; that over images has, unless there are many."""
    of = {
        "control": [i % 10 < 8 for i in range(images)],
        "dann": [i % 10 < 6 for i in range(images)],
        "source": [False] * images,
    }
    known = {name: answered([list(map(int, right))] * 2) for name, right in of.items()}
    found = {name: results([sum(right) / images] * 2) for name, right in of.items()}
    rows = [{"label": name, "stage": name} for name in ("source", "control", "dann")]
    report = {
        "rows": rows,
        "columns": {},
        "comparisons": [{"label": "gain", "a": "dann", "over": ["control", "source"]}],
    }
    told = tabulate(report, found, baselines=BASELINES, answers=lambda stage, seed: known[stage][seed])
    lines = negative_lines(told["rows"])
    assert [line.startswith("Negative transfer: dann is worse than its control, ") for line in lines] == [True] * said
    (gain,) = told["gains"]
    assert gain["resampled"] == "seeds and images" and gain["low"] < gain["mean"] < gain["high"]
    assert "95 % interval over seeds and images [" in gain_words(gain, "", str)
    assert negative_lines(tabulate(report, found, baselines=BASELINES)["rows"]) == []  # two seeds, and no image


GAINS = [
    {"label": "gain of MCC", "a": "mcc", "over": ["source", "control"]},
    {"label": "gain of DANN", "a": "dann", "over": ["source", "control"]},
]


def test_a_row_that_a_gain_is_counted_from_is_a_baseline() -> None:
    """One network with a weight of 0 can be the control of several methods, which only the author of the table knows."""
    found = {name: results([base - 0.001 * k for k in range(4)]) for name, base in FOUR.items()}
    rows = [{"label": name, "stage": name} for name in found]
    told = tabulate(
        {"rows": rows, "columns": {}, "comparisons": GAINS}, found, baselines={"mcc": {"control": "control"}}
    )
    (line,) = negative_lines(told["rows"])
    assert line.startswith("Negative transfer: dann is worse than its control, −10.0 points")
    assert negative_lines(tabulate({"rows": rows, "columns": {}, "comparisons": []}, found, baselines={})["rows"]) == []


FOUR = {"source": 0.3, "control": 0.5, "dann": 0.4, "mcc": 0.7}


def test_a_gain_is_counted_from_every_baseline_of_the_table() -> None:
    """A source-only that the entry does not name, with another bottleneck, may be the best of them."""
    found = {name: results([base - 0.001 * k for k in range(4)]) for name, base in {**FOUR, "linear": 0.65}.items()}
    rows = [{"label": name, "stage": name} for name in found]
    known = {"mcc": {"linear": "source-only", "source": "source-only"}, "dann": {"linear": "source-only"}}
    mcc, dann = tabulate({"rows": rows, "columns": {}, "comparisons": GAINS}, found, baselines=known)["gains"]
    assert [one["b"] for one in mcc["over"]] == ["source", "control", "linear"] == [one["b"] for one in dann["over"]]
    assert mcc["b"] == "linear" and mcc["mean"] == pytest.approx(0.05) and dann["mean"] == pytest.approx(-0.25)
    assert not dann["holds"] and "dann is worse than control and linear" in gain_words(dann, "", str)


def test_a_mean_over_tasks_needs_its_baseline_on_each_task() -> None:
    stages = {"dann": ["d1", "d2"], "source": ["s1", "s2"], "half": ["s1", "x"]}
    found = {
        name: results([base - 0.01 * k for k in range(3)])
        for name, base in {"d1": 0.5, "d2": 0.4, "s1": 0.7, "s2": 0.8, "x": 0.9}.items()
    }
    rows = [{"label": name, "stage": part[0], "stages": part} for name, part in stages.items()]
    baselines = {"d1": {"s1": "source-only"}, "d2": {"s2": "source-only"}}
    told = tabulate({"rows": rows, "columns": {}, "comparisons": []}, found, baselines=baselines)
    (line,) = negative_lines(told["rows"])
    assert "dann is worse than source-only (source), −30.0 points" in line


def shift(bbse: float, mlls: float, true: float | None = None) -> dict[str, Any]:
    known = {} if true is None else {"target": {"total_variation": true}}
    return {"label_shift": {"bbse": {"total_variation": bbse}, "mlls": {"total_variation": mlls}, "true": known}}


def test_priors_are_means_over_seeds_and_tasks() -> None:
    first, second = [shift(0.1, 0.2, 0.3), shift(0.3, 0.2, 0.3)], [shift(0.4, 0.8, 0.5)] * 2
    found = priors_of([first, second], "target")
    assert found == pytest.approx({"bbse": 0.3, "mlls": 0.5, "true": 0.4})
    assert priors_cell({"priors": found}) == "0.30 / 0.50 / 0.40"
    assert priors_of([first], "another") == pytest.approx({"bbse": 0.2, "mlls": 0.2})
    assert priors_cell({"priors": priors_of([first], "another")}) == "0.20 / 0.20 / –"
    assert priors_of([first, [{}]], "target") is None and priors_of([], "target") is None
    assert priors_cell({}) == ""


def test_tables_have_a_column_of_priors_where_a_row_has_any() -> None:
    found = table([0.5], [0.5], [0.5], **shift(0.125, 0.25, 0.5))
    text = pipeline_markdown(found, "rootstock run x")
    heads, _, source, _, dann, *_ = [line for line in text.splitlines() if line.startswith("|")]
    place = [cell.strip() for cell in heads.split("|")].index("class priors apart: BBSE / MLLS / true")
    assert dann.split("|")[place].strip() == "0.12 / 0.25 / 0.50" and source.split("|")[place].strip() == ""
    note = results_tables(found["rows"], {})[0].groups[0][1][2].note
    assert "class priors apart: BBSE / MLLS / true 0.12 / 0.25 / 0.50" in note
    assert "priors" not in pipeline_markdown(table([0.5], [0.5], [0.5]), "rootstock run x")
