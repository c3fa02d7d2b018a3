"""Points drawn before the trials: the same for every worker, all different, and the best of those within the budget are kept."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rootstock.core.errors import UserError
from rootstock.launch.sweep.plan import Sweep, plan_sweep
from rootstock.launch.sweep.prefilter import ScoredPoint, drawn_points, kept_points
from rootstock.launch.sweep.search_space import Span, as_keys, by_parameter, read_space
from rootstock.tests.launch.sweep.searched import WIDTHS, search

SPACE = {
    "log": Span("log", [1e-4, 1e-1]),
    "uniform": Span("uniform", [0.1, 0.3]),
    "int": Span("int", [8, 11]),
    "choice": Span("choice", [[1, 2], "two", 3]),
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_points_are_a_function_of_seed_and_number() -> None:
    points = drawn_points(SPACE, 40, seed=0)
    assert points[:7] == drawn_points(SPACE, 7, seed=0) != drawn_points(SPACE, 7, seed=1)
    assert len({json.dumps(point) for point in points}) == 40


def test_points_fill_the_space_evenly() -> None:
    points = drawn_points(SPACE, 300, seed=0)
    rates = sorted(math.log10(point["log"]) for point in points)
    assert rates[0] >= -4 and rates[-1] <= -1 and abs(rates[150] + 2.5) < 0.3
    assert all(0.1 <= point["uniform"] <= 0.3 for point in points)
    for key, values in (("int", [8, 9, 10, 11]), ("choice", [[1, 2], "two", 3])):
        counts = [sum(point[key] == value for point in points) for value in values]
        assert sum(counts) == 300 and min(counts) > 0.7 * 300 / len(values)


def test_a_small_space_has_no_point_twice() -> None:
    space = {"a": Span("int", [1, 3]), "b": Span("choice", ["x", "y"])}
    points = drawn_points(space, 100, seed=0)
    assert sorted((point["a"], point["b"]) for point in points) == [(a, b) for a in (1, 2, 3) for b in "xy"]


def planned(**sections: Any) -> Sweep:
    return plan_sweep(search(**sections), [])


def test_the_best_within_the_budget_are_kept() -> None:
    """Half of those that can be built and are within the budget, not of all that were drawn."""
    sweep = planned(cost={"name": "macs", "budget": 10.0}, prefilter={"name": "synflow", "of": 7, "keep": 0.5})
    facts = [
        {"cost": 5, "score": 1.0}, {"cost": 11}, {"why": "cannot be built"}, {"cost": 10, "score": 3.0}, {"cost": 1, "score": 2.0},
        {"cost": 2, "score": 2.0}, {"why": "nor this"},
    ]  # fmt: skip
    candidates = [ScoredPoint(number, {}, fact) for number, fact in enumerate(facts)]
    assert [one.number for one in kept_points(candidates, sweep)] == [3, 4]
    with pytest.raises(UserError) as error:
        kept_points([candidates[1]], sweep)
    assert str(error.value) == (
        "cost.budget: 10 is below the macs of all 1 points that were drawn (the least: 11); raise it, or search smaller "
        "networks, and choose another run.dir"
    )
    with pytest.raises(UserError) as error:
        kept_points([candidates[2]], sweep)
    assert (
        str(error.value)
        == "prefilter: none of 1 points can be built and scored: cannot be built; change search, and choose another run.dir"
    )
    free = planned(cost=None, prefilter={"name": "synflow", "of": 2, "keep": 1.0})
    assert [
        one.number
        for one in kept_points([ScoredPoint(0, {}, {"score": 1.0}), ScoredPoint(1, {}, {"score": 2.0})], free)
    ] == [1, 0]


def test_elements_of_a_list_are_parameters_of_their_own() -> None:
    problems: list[str] = []
    space = read_space({**WIDTHS, "optim.lr": {"log": [1e-4, 1e-2]}}, problems)
    names = [f"backbone.args.widths.{place}" for place in range(4)]
    assert not problems and list(space) == [*names, "optim.lr"]
    params = {**dict(zip(names, (2, 5, 16, 8), strict=True)), "optim.lr": 1e-3}
    assert as_keys(space, params) == {"backbone.args.widths": [2, 5, 16, 8], "optim.lr": 1e-3}
    assert list(by_parameter(WIDTHS)) == names and by_parameter(WIDTHS)[names[1]] == {"int": [2, 8]}
    sweep = planned()
    assert "backbone.args.widths=[2, 5, 16, 8]" in sweep.overrides(0, params)
