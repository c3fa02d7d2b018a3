"""The state that `evaluate.select` exports: chosen without a label of the target, tested as the classifier, the same after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rootstock.adapt.chosen import chosen
from rootstock.adapt.examine import Examination
from rootstock.adapt.stored_runs import stored_run
from rootstock.adapt.validators.selection import RuleChoice, Scoring
from rootstock.core.errors import UserError
from rootstock.launch.report.page import write_report
from rootstock.launch.report.tables import selection_sentence
from rootstock.tests.adapt.test_examine import FULL, start, weights

HALF = {**FULL, "mixval": False}


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    where = tmp_path_factory.mktemp("last")
    return where, start(where, HALF)


@pytest.fixture(scope="module")
def early(last: tuple[Path, dict[str, Any]]) -> str:
    """A validator that picks an earlier state of that run."""
    picks: dict[str, str] = last[1]["validators"]["picks"]
    return next(name for name, pick in sorted(picks.items()) if pick != "step 6")


def test_the_picked_state_is_exported_and_tested(last: tuple[Path, dict[str, Any]], early: str, tmp_path: Path) -> None:
    """All else is as in the run that exports its last state: the training, the scores, the picks and what they cost."""
    plain = last[1]
    result = start(tmp_path, {**HALF, "select": early})
    picked = plain["validators"]["picks"][early]
    told, known = result["validators"], plain["validators"]
    assert told["selected"] == picked and result["selection"] == early
    assert {key: told[key] for key in ("candidates", "scores", "picks", "rule", "regret")} == {
        key: known[key] for key in ("candidates", "scores", "picks", "rule", "regret")
    }
    accuracies = dict(zip(known["candidates"], known["regret"]["target"]["accuracies"], strict=True))
    assert result["metrics"]["target/classifier/accuracy"] == accuracies.pop(picked)
    assert result["states"]["target"] == accuracies
    run = tmp_path / "run"
    kept = load_file(run / "candidates" / f"step-{int(picked.split()[1]):08d}-weights.safetensors")
    exported = load_file(run / "classifier" / "head.safetensors")
    assert all(torch.equal(value, kept[f"head.{name}"]) for name, value in exported.items())
    assert weights(tmp_path) != weights(last[0])
    # The temperature and the measures are those of the exported state.
    assert result["calibration"] != plain["calibration"] and result["diagnostics"] != plain["diagnostics"]
    stored = [stored_run(where / "run", print) for where in (tmp_path, last[0])]
    assert stored[0] is not None and stored[1] is not None
    assert stored[0].facts.accuracies == stored[1].facts.accuracies
    page = write_report([run], tmp_path / "page.html").read_text()
    assert f"The run reports the state that evaluate.select chose: {picked}." in page
    assert f"Chosen by the label-free validator {early}." in page


def test_a_stop_before_the_choice_and_the_same_command_give_the_same(
    early: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = start(tmp_path / "straight", {**HALF, "select": early})

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Examination, "conclude", stopped)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "stopped", {**HALF, "select": early})
    again = start(tmp_path / "stopped", {**HALF, "select": early})
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")
    assert again["metrics"] == straight["metrics"] and again["validators"] == straight["validators"]


def test_the_rule_chooses_too(last: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    result = start(tmp_path, {**HALF, "select": "rule"})
    picked = last[1]["validators"]["rule"]["pick"]
    assert result["validators"]["selected"] == picked
    assert result["selection"] == ("last" if picked == "step 6" else "rule")
    assert "default rule" in selection_sentence("rule")


def test_weights_that_are_lost_are_named(early: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Examination, "conclude", stopped)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, {**HALF, "select": early})
    for path in (tmp_path / "run" / "candidates").glob("*-weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        UserError, match=r"^evaluate\.select: .*-weights\.safetensors .* restore it, or delete the run's"
    ):
        start(tmp_path, {**HALF, "select": early})
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_validator_without_a_score_leaves_the_last_state_and_says_so() -> None:
    said: list[str] = []
    scoring = Scoring(("step 1", "step 2"), {"entropy": [float("nan")] * 2}, {"mixval": "needs mixed images"})
    rule = RuleChoice(0, (0,), "")
    assert chosen("rule", scoring, rule, said.append) == 0 and not said
    assert [chosen(name, scoring, rule, said.append) for name in ("entropy", "mixval")] == [1, 1]
    assert "no candidate has a finite score" in said[0] and "needs mixed images" in said[1]


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        ({"select": "entropi", "every": 2}, "no such validator: entropi; did you mean entropy?"),
        ({"select": "entropy"}, r"the last state is the only candidate; add evaluate\.every=25%"),
        ({"select": "source_validation", "every": 2}, r"source_validation needs evaluate\.held_out=0\.1; add it"),
        ({"select": "mixval", "every": 2}, r"mixval needs evaluate\.mixval=true; add it"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(evaluate: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^evaluate\.select: {words}"):
        start(tmp_path, evaluate)


def test_nothing_is_kept_where_the_last_state_is_exported(last: tuple[Path, dict[str, Any]]) -> None:
    where, result = last
    assert "selected" not in result["validators"] and result["selection"] == "last"
    assert not list((where / "run" / "candidates").glob("*-weights*"))
    assert json.loads((where / "run" / "result.json").read_text())["validators"] == result["validators"]
