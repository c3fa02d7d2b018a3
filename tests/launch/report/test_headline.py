"""The verdict of a page: one sentence that the numbers below it bear out."""

from pathlib import Path
from typing import Any

import pytest

from rootstock.launch.report.headline import verdict_of_runs, verdict_of_table
from rootstock.launch.report.levels import Levels
from rootstock.launch.report.pairs import Pairs
from rootstock.launch.report.records import RunRecord, StageRuns


def row(label: str, mean: float, **more: Any) -> dict[str, Any]:
    given = {
        "label": label,
        "stage": label,
        "metric": "test/knn/accuracy",
        "n": 1,
        "mean": mean,
        "low": None,
        "high": None,
    }
    return {**given, "values": [mean], "kind": "inductive", "selection": ["last"], **more}


def difference(mean: float, low: float | None, high: float | None, n: int = 5) -> dict[str, Any]:
    return {"label": "d", "a": "new", "b": "old", "mean": mean, "low": low, "high": high, "n": n}


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (difference(0.031, 0.01, 0.052), "new is better than old: +3.1 points (95 % interval [+1.0, +5.2], 5 seeds)."),
        (
            difference(-0.031, -0.052, -0.01),
            "new is worse than old: −3.1 points (95 % interval [−5.2, −1.0], 5 seeds).",
        ),
        (
            difference(0.031, -0.01, 0.072),
            "No difference is shown: new − old is +3.1 points (95 % interval [−1.0, +7.2], 5 seeds).",
        ),
        (difference(0.031, None, None, 1), "new − old is +3.1 points in one seed, which shows no difference yet."),
    ],
)
def test_a_difference_is_called_one_only_by_its_interval(one: dict[str, Any], words: str) -> None:
    assert verdict_of_table([row("new", 0.8), row("old", 0.7)], [one], []) == words


def test_an_interval_over_images_counts_before_that_over_seeds() -> None:
    """Two seeds that gain the same have no spread, and a few images show nothing."""
    rows, one = [row("new", 0.8), row("old", 0.7)], difference(0.0714, None, None, 2)
    assert verdict_of_table(rows, [one], []) == "new − old is +7.1 points in 2 seeds, which shows no difference yet."
    told = "No difference is shown: new − old is +7.1 points (95 % interval over seeds and images [−14.0, +29.0], 2 seeds)."
    assert verdict_of_table(rows, [{**one, "over_images": [-0.14, 0.29]}], []) == told
    sure = verdict_of_table(rows, [{**difference(0.02, -0.01, 0.05, 1), "over_images": [0.01, 0.03]}], [])
    assert sure == "new is better than old: +2.0 points (95 % interval over images [+1.0, +3.0], one seed)."


def test_lower_is_better_for_a_loss() -> None:
    rows = [row(label, 1.0, metric="test/knn/nll") for label in ("new", "old")]
    assert verdict_of_table(rows, [difference(-0.2, -0.3, -0.1)], []).startswith("new is better than old: -0.2 of nll")
    assert "is b: nll 0.5" in verdict_of_table(
        [row("a", 0.7, metric="t/knn/nll"), row("b", 0.5, metric="t/knn/nll")], [], []
    )


def test_the_best_row_is_none_that_is_no_result_or_of_another_kind() -> None:
    rows = [row("a", 0.6), row("b", 0.7), row("oracle", 0.9, kind="oracle"), row("seen", 0.8, kind="transductive")]
    assert verdict_of_table(rows, [], []) == "The best of 2 rows is b: accuracy 70.0 %, one run."
    assert verdict_of_table(rows[2:3], [], []) == ""


def test_one_run_stands_beside_chance_and_is_judged_by_its_interval() -> None:
    stage = StageRuns("s", [RunRecord(Path("s"), result={"metrics": {"test/knn/accuracy": 0.3}})])
    levels = {"s": {"test": Levels(0.1, 0.25)}}
    sure, unsure = row("s", 0.3, bootstrap=[0.27, 0.33]), row("s", 0.3, bootstrap=[0.2, 0.4])
    told = verdict_of_runs([stage], [sure], levels, Pairs([], []))
    assert (
        told == "Accuracy 30.0 % [27.0, 33.0], one run (knn); chance is 10.0 %, always the most frequent class 25.0 %."
    )
    assert verdict_of_runs([stage], [unsure], levels, Pairs([], [])).endswith(
        "not shown to be better than a constant guess."
    )
    rows = [{"step": step, "loss": 5.0 - step} for step in range(3)]
    bare = StageRuns("s", [RunRecord(Path("s"), rows=rows)])
    assert verdict_of_runs([bare], [], {}, Pairs([], [])) == "Unfinished: the loss went from 5 to 3."
