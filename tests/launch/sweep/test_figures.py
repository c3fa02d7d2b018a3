"""Figures of a sweep: chance and the most frequent class, dashed where the axis reaches them, in words in any case."""

import pytest

from rootstock.launch.report.levels import Levels
from rootstock.launch.sweep.cost import cost_in_words
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


def test_the_front_has_its_budget_and_what_lies_beyond_it() -> None:
    """A sweep without a cost has no such figure; of one with a cost the first figure is it."""
    trials = [
        {"number": i, "state": "complete", "value": value, "cost": cost, "params": {"optim.lr": 0.1}}
        for i, (value, cost) in enumerate(((0.5, 1000), (0.7, 24_000_000), (0.6, 30_000_000)))
    ]
    trials.append({"number": 3, "state": "over budget", "value": None, "cost": 90_000_000, "params": {"optim.lr": 0.1}})
    result = {
        "run": "r", "trials": trials, "importance": {}, "direction": "maximize", "objective": "test/knn/accuracy",
        "best": {"number": 1}, "cost": {"name": "macs", "budget": 4e7}, "front": trials[:2],
    }  # fmt: skip
    first, *_ = figures(result, {"optim.lr": {"uniform": [0.0, 1.0]}}, {})
    assert first.title == "Pareto front" and first.svg.count("stroke-dasharray") == 1
    assert first.caption == "test/knn/accuracy, higher is better, macs: lower is better."
    assert [name for _, name in first.legend] == ["trial", "Pareto front", "budget; a tick is a point beyond it"]
    assert "multiply-adds of a picture" in first.svg and "20M" in first.svg
    assert [cost_in_words(cost) for cost in (0.95725, 640, 310_250, 1_234_567)] == ["0.9573", "640", "310.2k", "1.235M"]
