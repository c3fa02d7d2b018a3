"""Differences of rows: their unit, and when seeds give no interval."""

from typing import Any

import pytest

from rootstock.launch.pipeline.run import printed_tables
from rootstock.launch.pipeline.table import tabulate
from rootstock.launch.report.contrasts import student_p
from rootstock.launch.report.differences import difference_bounds, difference_words, differences_table, in_points
from rootstock.launch.report.markdown import pipeline_markdown
from rootstock.launch.report.results import compare


def row(label: str, values: list[float], metric: str = "test/knn/accuracy") -> dict[str, Any]:
    return {"label": label, "metric": metric, "seeds": list(range(len(values))), "values": values}


@pytest.mark.parametrize(
    ("values", "sure"), [([0.6, 0.6], False), ([0.6, 0.61], True), ([0.5, 0.5], True), ([0.6] * 3, True)]
)
def test_two_seeds_that_differ_alike_have_no_interval(values: list[float], sure: bool) -> None:
    """By chance two seeds of few images do; that their difference is 0 needs no interval beside 0."""
    found = compare(row("a", values), row("b", [0.5] * len(values)), "d")
    assert (found["low"] is not None) == sure and found["mean"] == pytest.approx(sum(values) / len(values) - 0.5)
    if not sure:
        assert student_p(found["values"]) == 1.0


def test_a_metric_that_is_no_fraction_is_told_as_it_is() -> None:
    metrics = {
        "nll": {"a": [1.2, 1.25, 1.18], "b": [1.5, 1.6, 1.52]},
        "accuracy": {"a": [0.7, 0.72, 0.71], "b": [0.6, 0.61, 0.62]},
    }
    results = {
        f"{metric}_{side}": [{"seed": k, "metrics": {f"test/knn/{metric}": value}} for k, value in enumerate(values)]
        for metric, sides in metrics.items()
        for side, values in sides.items()
    }
    rows = [{"label": name, "stage": name} for name in results]
    entries = [{"label": f"{metric} of a and b", "a": f"{metric}_a", "b": f"{metric}_b"} for metric in metrics]
    table = tabulate({"rows": rows, "columns": {}, "comparisons": entries}, results)
    loss, points = table["comparisons"]
    assert not in_points(loss) and in_points(points)
    assert (difference_words(loss), difference_words(points)) == ("−0.33 nll", "+10.0")
    assert difference_bounds(loss, (-0.4, -0.25)) == "[−0.4, −0.25]" and difference_bounds(points, None) == ""
    lines = differences_table(table["comparisons"]).groups[0][1]
    assert [line.mean for line in lines] == ["−0.33 nll", "+10.0"] and [line.plot is None for line in lines] == [
        True,
        False,
    ]
    assert "| nll of a and b (nll_a − nll_b) | −0.33 nll | [−0." in pipeline_markdown(table, "rootstock run x.yaml")
    (printed,) = printed_tables(table)
    assert [str(cell) for cell in printed.columns[2].cells][-2:] == ["−0.33 nll", "+10.0"]
