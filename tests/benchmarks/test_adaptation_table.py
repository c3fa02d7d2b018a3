"""benchmarks/adaptation_table.py: tables by task, losses, and the regret of validators."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

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
