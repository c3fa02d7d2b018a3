"""A gain over several rows is the smallest of its differences, and holds only if all of them hold."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rootstock.core.config.resolve import ConfigError
from rootstock.launch.pipeline.plan import plan_pipeline
from rootstock.launch.pipeline.run import run_pipeline
from rootstock.launch.pipeline.table import tabulate
from rootstock.launch.report.gains import gain_words
from rootstock.launch.report.markdown import gain_lines, points
from rootstock.launch.report.results import compare
from rootstock.tests.launch.pipeline.test_run import Verbs, changed, project, resolve, write

__all__ = ["project"]
ACCURACY, LOSS = "target/classifier/accuracy", "target/classifier/nll"


def table(values: Mapping[str, Sequence[float]], over: Sequence[str], metric: str = ACCURACY) -> dict[str, Any]:
    """The result of a pipeline whose row "m" is compared with others. values: of each row, one number a seed."""
    results = {
        name: [{"seed": seed, "metrics": {metric: value}} for seed, value in enumerate(found)]
        for name, found in values.items()
    }
    rows = [{"label": name, "stage": name} for name in values]
    entry = {"label": "gain", "a": "m", "over": list(over)}
    return tabulate({"rows": rows, "columns": {}, "comparisons": [entry]}, results)


def test_the_smaller_difference_counts_with_its_own_interval() -> None:
    """Checked against numpy: the mean difference and Student's interval of the row that is nearer, whichever order they are named in."""
    random = np.random.default_rng(0)
    rows = {name: rate + random.normal(0, 0.01, 6) for name, rate in (("m", 0.8), ("control", 0.7), ("source", 0.76))}
    for over in (["control", "source"], ["source", "control"]):
        found = table({name: values.tolist() for name, values in rows.items()}, over)
        assert [one["b"] for one in found["comparisons"]] == over
        (gain,) = found["gains"]
        difference = rows["m"] - rows["source"]
        half = 2.570582 * difference.std(ddof=1) / math.sqrt(6)  # the quantile of t with 5 degrees of freedom
        assert (gain["a"], gain["b"], gain["label"], gain["n"]) == ("m", "source", "gain", 6)
        assert gain["mean"] == pytest.approx(difference.mean())
        bounds = (difference.mean() - half, difference.mean() + half)
        assert (gain["low"], gain["high"]) == pytest.approx(bounds, abs=1e-6)
        assert [one["b"] for one in gain["over"]] == over and gain["holds"]
        (line,) = gain_lines(found["gains"])
        assert line.startswith(
            f"gain (exploratory): m gains {points(gain['mean'])} points over source, 95 % interval ["
        )
        assert "the smaller of its differences from" in line
    larger = next(one for one in found["comparisons"] if one["b"] == "control")
    assert larger["mean"] > gain["mean"] and larger["label"] == "gain, over control"


def test_a_flattering_control_cannot_make_a_gain() -> None:
    """Joint statistics cost ten points: the method wins them back, and is no better than source-only."""
    found = table(
        {"m": [0.80, 0.82, 0.81], "control": [0.70, 0.72, 0.71], "source": [0.80, 0.815, 0.815]}, ["control", "source"]
    )
    (gain,) = found["gains"]
    assert gain["b"] == "source" and not gain["holds"] and abs(gain["mean"]) < 1e-9
    assert found["comparisons"][0]["low"] > 0.05
    assert gain_lines(found["gains"])[0].startswith(
        "gain (exploratory): no gain of m is shown, since its difference from source may be 0:"
    )


def test_a_wide_interval_over_the_other_row_is_no_gain_either() -> None:
    """The smaller difference is sure, the larger one is not: both have to hold."""
    found = table(
        {"m": [0.80, 0.81, 0.80], "control": [0.77, 0.78, 0.77], "source": [0.90, 0.50, 0.60]}, ["control", "source"]
    )
    (gain,) = found["gains"]
    assert gain["b"] == "control" and gain["low"] > 0 and not gain["holds"]
    assert "no gain of m is shown, since its difference from source may be 0" in gain_lines(found["gains"])[0]


def test_a_loss_is_called_that() -> None:
    rows = {"m": [0.60, 0.61, 0.60], "control": [0.70, 0.71, 0.70], "source": [0.50, 0.51, 0.50]}
    (line,) = gain_lines(table(rows, ["source", "control"])["gains"])
    assert line.startswith("gain (exploratory): m is worse than control: −10.0 points over control")


def test_of_a_metric_that_is_better_when_lower_the_smallest_improvement_counts() -> None:
    rows = {"m": [1.0, 1.1, 1.05], "control": [1.4, 1.5, 1.45], "source": [1.2, 1.3, 1.25], "third": [9.0, 9.1, 9.05]}
    (gain,) = table(rows, ["control", "source", "third"], LOSS)["gains"]
    assert gain["b"] == "source" and gain["mean"] == pytest.approx(-0.2) and gain["holds"]
    assert "the smallest of its differences from" in gain_words(gain, "", str)


def test_one_seed_shows_no_gain() -> None:
    found = table({"m": [0.8], "control": [0.7], "source": [0.6]}, ["control", "source"])
    assert gain_lines(found["gains"]) == [
        "gain (exploratory): m: +10.0 points over control, no interval: the smaller of its differences from control (+10.0) and source "
        "(+20.0); no gain is shown without an interval."
    ]
    assert not found["gains"][0]["holds"]


def test_without_such_a_comparison_a_result_is_as_before() -> None:
    rows = [{"label": name, "stage": name} for name in "ab"]
    results = {name: [{"seed": 0, "metrics": {ACCURACY: 0.5}}] for name in "ab"}
    entry = {"label": "d", "a": "a", "b": "b"}
    found = tabulate({"rows": rows, "columns": {}, "comparisons": [entry]}, results)
    first, second = found["rows"]
    assert "gains" not in found and found["comparisons"] == [compare(first, second, "d")]


def with_third(**entry: Any) -> dict[str, Any]:
    """The pipeline of test_run.py with one more stage, which does as well as "plain"."""
    config = changed()
    config["stages"]["third"] = {"verb": "adapt", "config": "adapt.yaml"}
    config["report"]["rows"].append({"label": "Third", "stage": "third"})
    config["report"]["comparisons"] = [{"label": "gain", "a": "SSL", **entry}]
    return config


def test_table_page_and_terminal_have_the_sentence(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_pipeline(write(tmp_path, with_third(over=["Plain", "third"])), ["seeds=3"], Verbs(), resolve)
    assert [one["label"] for one in found["comparisons"]] == ["gain, over Plain", "gain, over Third"]
    (sentence,) = gain_lines(found["gains"])
    assert sentence.startswith("gain (exploratory): SSL gains +12.0 points over Plain, 95 % interval [+7.0, +17.0]")
    assert f"- {sentence}" in Path("out/table.md").read_text()
    assert sentence in Path("out/report.html").read_text().replace("&#39;", "'")
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({}, "b: give the row that is subtracted"),
        ({"b": "plain", "over": ["Plain", "third"]}, "b: give the row that is subtracted"),
        ({"over": ["plain"]}, "over: expected two or more different rows"),
        ({"over": ["plain", "Plain"]}, "over: expected two or more different rows"),
        ({"over": ["plain", "thirds"]}, "over: no row thirds; did you mean"),
        ({"over": ["plain", "third"], "primary": True}, "primary: a primary contrast has one row b"),
        ({"b": "plain", "beyond": ["third"]}, "beyond: expected two rows, [C, D], beside a and b"),
        (
            {"over": ["plain", "third"], "beyond": ["third", "plain"]},
            "beyond: expected two rows, [C, D], beside a and b",
        ),
        ({"b": "plain", "beyond": ["third", "plane"]}, "beyond: no row plane; did you mean Plain"),
    ],
)
def test_what_a_comparison_over_rows_needs(entry: dict[str, Any], told: str, project: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_pipeline(write(tmp_path, with_third(**entry)), [], resolve)
    assert [p for p in caught.value.problems if p.startswith(f"report.comparisons.0.{told}")], caught.value.problems
