"""Figures of a sweep: chance and the most frequent class, dashed where the axis reaches them, in words in any case."""

import pytest

from rootstock.launch.report.levels import Levels
from rootstock.launch.sweep.figures import figures


@pytest.mark.parametrize(("values", "lines"), [([0.1, 0.5, 0.3], 2), ([0.9, 0.95, 0.93], 0)])
def test_guesses_are_drawn_where_the_axis_reaches_them(values: list[float], lines: int) -> None:
    trials = [{"number": i, "value": value, "params": {"optim.lr": 0.1 * (i + 1)}} for i, value in enumerate(values)]
    result = {
        "run": "r", "trials": trials, "importance": {}, "direction": "maximize", "objective": "test/knn/accuracy",
        "best": {"number": 1},
    }  # fmt: skip
    history, by_rate = figures(result, {"optim.lr": {"uniform": [0.0, 1.0]}}, {}, Levels(0.125, 0.25))
    for figure in (history, by_rate):
        assert figure.svg.count("stroke-dasharray") == lines
        assert "Chance is 12.5 %, always the most frequent class 25.0 %." in figure.caption
    plain, _ = figures(result, {"optim.lr": {"uniform": [0.0, 1.0]}}, {})
    assert "stroke-dasharray" not in plain.svg and plain.caption == "test/knn/accuracy, higher is better."
