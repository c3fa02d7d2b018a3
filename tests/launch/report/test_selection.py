"""What the page shows of validators: picks, what they cost against the oracle, and why some are left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from rootstock.adapt.validators.selection import RuleChoice, Scoring, add_regrets, as_result
from rootstock.core.evaluate.intervals import mean_interval
from rootstock.launch.report.page import write_report
from rootstock.launch.report.records import RunRecord, StageRuns
from rootstock.launch.report.selection import validator_tables
from rootstock.tests.launch.report.test_page import Page, make_run

STEPS = ("step 10", "step 20", "step 30")


def told(accuracies: list[float], entropy: list[float], im: list[float]) -> dict[str, Any]:
    """The entry `validators` as `rootstock adapt` writes it. accuracies: of the candidates on the target."""
    scores = {"last": [0.0, 1.0, 2.0], "entropy": entropy, "im": im}
    left_out = {"dev": "needs held-out source images", "iwv": "needs held-out source images", "mixval": "needs more"}
    found = as_result(Scoring(STEPS, scores, left_out), RuleChoice(1, (0, 1, 2), "no filter, then im"))
    states = {"target": dict(zip(STEPS[:2], accuracies[:2], strict=True))}
    add_regrets(found, {"states": states, "metrics": {"target/classifier/accuracy": accuracies[2]}})
    return found


SEEDS = (
    told([0.6, 0.8, 0.7], entropy=[3, 1, 2], im=[1, 3, 2]),
    told([0.5, 0.9, 0.6], entropy=[1, 2, 3], im=[1, 2, 3]),
)


def stage(*found: dict[str, Any]) -> StageRuns:
    records = [RunRecord(Path(f"seed-{i}"), result={"validators": one}) for i, one in enumerate(found)]
    return StageRuns("dann", records)


def test_picks_and_regrets_of_one_seed() -> None:
    (table,) = validator_tables(stage(SEEDS[0]))
    assert table.test == "target" and not table.intervals
    shown = {line.name: (line.picks, line.accuracy, line.regret) for line in table.lines}
    assert shown == {
        "im": ("step 20", "80.0", "0.0"),
        "default rule": ("step 20", "80.0", "0.0"),
        "last": ("step 30", "70.0", "10.0"),
        "entropy": ("step 10", "60.0", "20.0"),
    }
    assert [line.name for line in table.lines] == ["im", "default rule", "last", "entropy"]
    foot = " ".join(table.foot)
    assert (
        "the oracle, the best candidate by these labels, an upper bound and no result: step 20, 80.0 % on target."
        in foot
    )
    assert "step 10, step 20, step 30" in foot and "no filter, then im" in foot
    assert "Left out: dev, iwv (needs held-out source images)." in table.foot


def test_over_seeds_means_and_intervals_of_the_regret() -> None:
    (table,) = validator_tables(stage(*SEEDS))
    lines = {line.name: line for line in table.lines}
    entropy = lines["entropy"]
    mean, low, high = mean_interval([0.2, 0.3], span=(0.0, 1.0))
    assert (entropy.picks, entropy.accuracy, entropy.regret) == (
        "step 10 (1), step 30 (1)",
        "60.0",
        f"{100 * mean:.1f}",
    )
    assert low is not None and high is not None
    assert entropy.interval == f"[{100 * low:.1f}, {100 * high:.1f}]" and table.intervals
    assert "oracle" not in lines and "no result: step 20 (2), 85.0 % on target." in " ".join(table.foot)


@pytest.mark.parametrize(
    "found", [{}, {k: v for k, v in SEEDS[0].items() if k != "regret"}], ids=["none", "one candidate"]
)
def test_without_candidates_there_is_no_table(found: dict[str, Any]) -> None:
    assert validator_tables(stage(found)) == []


def test_the_page_of_a_run_has_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    result = (run / "result.json").read_text()
    assert "Selection without target labels" not in write_report([run], tmp_path / "before.html").read_text()
    (run / "result.json").write_text(json.dumps({**json.loads(result), "validators": SEEDS[0]}))
    page = Page(write_report([run], tmp_path / "page.html"))
    words = " ".join(page.words)
    assert "Selection without target labels" in words and "default rule" in words and "regret, points" in words
