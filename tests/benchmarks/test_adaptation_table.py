"""benchmarks/adaptation_table.py: tables by task, losses, and the regret of validators."""

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

METRIC = "target/classifier/accuracy"
SPLIT = "abcdef0123456789"


@pytest.fixture(scope="module")
def made(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("adaptation_table")


def run(accuracy: float, distance: float, regret: dict[str, float] | None = None) -> dict[str, Any]:
    by = {name: {"accuracy": 0.5, "regret": cost} for name, cost in (regret or {}).items()}
    return {
        "metrics": {METRIC: accuracy},
        "label_shift": {"mlls": {"total_variation": distance / 2}, "true": {"target": {"total_variation": distance}}},
        "validators": {"regret": {"target": {"by": by}}} if regret else {},
        "data": {"split": {"source": "0" * 16, "test.target": SPLIT}},
    }


RUNS = {
    "a_b-source": [run(0.5, 0.1, {"im": 0.02}), run(0.7, 0.1, {"im": 0.04})],
    "b_a-source": [run(0.4, 0.3), run(0.4, 0.3)],
    "b_c-source": [run(0.2, 0.6), run(0.2, 0.6)],
    "a_b-mcc": [run(0.8, 0.1), run(0.8, 0.1)],
    "b_a-mcc": [run(0.5, 0.3), run(0.5, 0.3)],
    "b_c-mcc": [run(0.1, 0.6), run(0.1, 0.6)],
}
ROWS = [
    {"label": "source", "metric": METRIC, "stage": "a_b-source", "stages": ["a_b-source", "b_a-source", "b_c-source"]},
    {"label": "mcc", "metric": METRIC, "stage": "a_b-mcc", "stages": ["a_b-mcc", "b_a-mcc", "b_c-mcc"]},
]


def test_tasks_have_means_over_seeds_and_distances_of_the_baseline(made: ModuleType) -> None:
    found = made.tasks(ROWS, RUNS.__getitem__)
    assert [task.name for task in found] == ["a_b", "b_a", "b_c"]
    assert found[0].accuracies == pytest.approx({"source": 0.6, "mcc": 0.8})
    assert [task.true for task in found] == pytest.approx([0.1, 0.3, 0.6]) and found[2].estimated == pytest.approx(0.3)
    assert made.gains(found, "mcc", "source") == pytest.approx([0.2, 0.1, -0.1])


def test_the_page_names_tasks_with_a_loss_and_how_gains_go_with_priors(made: ModuleType) -> None:
    said = "\n".join(made.by_task(made.tasks(ROWS, RUNS.__getitem__), "source"))
    assert "| a_b | 0.05 | 0.10 | 60.0 | 80.0 |" in said
    assert "| mcc | -10.0 | +20.0 | -1.00 | b_c |" in said
    assert made.splits(ROWS, RUNS.__getitem__) == f"Tests by the hash of their split: {SPLIT[:12]}."


def test_regrets_are_means_over_runs_and_none_are_told_where_one_state_was_kept(made: ModuleType) -> None:
    said = made.validators(ROWS, RUNS.__getitem__)
    assert "| im | 3.00 |" in said[1] and said[1].rstrip().endswith("| 2 |")
    assert made.validators(ROWS[1:], RUNS.__getitem__) == []


def test_equal_gains_have_no_rank(made: ModuleType) -> None:
    assert made.rank_correlation([0.1, 0.2, 0.3], [1.0, 1.0, 1.0]) == "-" == made.rank_correlation([0.1], [1.0])


def test_a_gain_that_falls_with_the_distance_crosses_zero_where_the_line_does(made: ModuleType) -> None:
    distances = np.linspace(0.05, 0.6, 8) + np.zeros((6, 1))
    noise = np.random.default_rng(1).normal(0, 0.01, distances.shape)
    found, low, high = map(float, re.findall(r"[\d.]+", made.crossing(distances, 0.1 - 0.4 * distances + noise)))
    assert found == pytest.approx(0.25, abs=0.03) and low <= found <= high and high - low < 0.1
    assert made.crossing(distances, 0.1 + noise - 0.1 * distances) == "above 0 all along"
    assert made.crossing(distances, noise - 0.5 - 0.1 * distances) == "below 0 all along"
    # Seeds that do not agree leave the interval open.
    wide = made.crossing(
        distances[:3], np.stack([a - 0.4 * d for a, d in zip((0.18, 0.2, 0.24), distances, strict=False)])
    )
    assert re.fullmatch(r"0\.52 \[0\.3\d, over 0\.60\]", wide), wide


def test_a_gain_that_rises_with_the_distance_is_told_as_one(made: ModuleType) -> None:
    """It may cross zero, too, and is then neither above nor below 0 at every distance."""
    distances = np.linspace(0.05, 0.6, 8) + np.zeros((6, 1))
    noise = np.random.default_rng(1).normal(0, 0.01, distances.shape)
    said = made.crossing(distances, 0.4 * distances - 0.1 + noise)
    assert re.match(r"rises through 0 at 0\.2\d \[0\.2\d, 0\.2\d\]", said), said
    assert made.crossing(distances, 0.3 * distances + 0.1) == "above 0 all along"
    assert made.crossing(distances, 0.3 * distances - 0.5) == "below 0 all along"


def test_without_a_sure_slope_or_with_one_seed_there_is_no_interval(made: ModuleType) -> None:
    distances = np.linspace(0.0, 1.0, 5) + np.zeros((4, 1))
    slopes = np.array([[-1.0], [-0.9], [-1.1], [2.0]])
    assert made.crossing(distances, 0.1 + slopes * distances) == "0.40, no interval"
    assert made.crossing(distances[:1], 0.5 - distances[:1]) == "0.50, no interval"


def test_crossings_are_of_rows_over_all_tasks(made: ModuleType) -> None:
    alone = {"label": "a_b: mcc", "metric": METRIC, "stage": "a_b-mcc"}
    before = {"label": "as it was trained", "metric": METRIC, "stage": "trained"}
    assert made.alike([before, *ROWS, alone]) == ROWS and made.alike([before, alone]) == [before, alone]
    said = "\n".join(made.crossings(ROWS, RUNS.__getitem__))
    assert "over source" in said and "| mcc | 0.44, no interval |" in said and "0.10 to 0.60" in said, said
    assert made.crossings(ROWS[:1], RUNS.__getitem__) == []
