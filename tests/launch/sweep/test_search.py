"""A search with a cost: no trial is lost, trained twice or trained beyond the budget, and every worker finds the same front."""

import functools
import json
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest

from rootstock.launch.report.page import write_report
from rootstock.launch.sweep.appraisal import FACTS, offered_points, scored_points, weigh_trial
from rootstock.launch.sweep.plan import plan_sweep
from rootstock.launch.sweep.result import record_result
from rootstock.launch.sweep.study import Claim, Study, TrialState
from rootstock.launch.sweep.untrained import untrained_at
from rootstock.launch.verbs import execute
from rootstock.tests.launch.sweep.conftest import Run
from rootstock.tests.launch.sweep.searched import STEPS, search


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def joined(**sections: Any) -> Study:
    return Study(plan_sweep(search(**sections), []))


def killed_at(step: int) -> dict[str, Any]:
    """A trial that is about to begin the step after `step` ones kills its worker."""
    return {"at": step, "signal": signal.SIGKILL, "to": "worker"}


def result() -> dict[str, Any]:
    return json.loads(Path("sweep/result.json").read_text())


def take(claims: list[Claim], study: Study) -> Claim:
    claim = study.claim()
    assert claim is not None
    claims.append(claim)
    return claim


def check_whole(outcome: dict[str, Any], trials: int) -> None:
    """All trials are there once; each that was trained has its steps, its own network and the cost of that network."""
    sweep = plan_sweep("sweep.yaml", [])
    assert [trial["number"] for trial in outcome["trials"]] == list(range(trials))
    for trial in outcome["trials"]:
        if trial["state"] == "over budget":
            assert trial["value"] is None and not Path(trial["run"], "metrics.jsonl").exists()
            assert trial["cost"] > outcome["cost"]["budget"]
            continue
        rows = [json.loads(line) for line in Path(trial["run"], "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
        assert (
            json.loads(Path(trial["run"], "result.json").read_text())["metrics"]["test/classifier/accuracy"]
            == trial["value"]
        )
        widths = [trial["params"][f"backbone.args.widths.{place}"] for place in range(4)]
        assert trial["cost"] == untrained_at(sweep, {"backbone.args.widths": widths}).macs
    points = [json.dumps(trial["params"]) for trial in outcome["trials"] if "same_as" not in trial]
    assert len(set(points)) == len(points)


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_front(run: Run) -> None:
    """One worker, killed in its first trial, after a filter; another goes on. The front is that of an undisturbed search."""
    sections = {
        "trials": 3,
        "cost": {"name": "macs", "budget": 20_000.0},
        "prefilter": {"name": "synflow", "of": 4, "keep": 0.4},
    }
    search(**sections)
    assert run(killed_at(3)) == [-signal.SIGKILL]
    begun = optuna.load_study(study_name="sweep", storage="sqlite:///sweep/study.db").trials
    assert begun[-1].state == TrialState.RUNNING and not Path("sweep/result.json").exists()
    assert run(None) == [0]
    outcome = result()
    check_whole(outcome, 3)
    assert outcome["trials"][begun[-1].number]["attempts"] == 2
    before = {path: path.read_bytes() for path in Path("sweep").rglob("*.json")}
    assert run(None) == [0]
    assert {path: path.read_bytes() for path in Path("sweep").rglob("*.json")} == before

    Path("sweep").rename("killed")
    assert run(None) == [0]
    keys = ("number", "params", "value", "cost")
    assert [{k: point[k] for k in keys} for point in result()["front"]] == [
        {k: point[k] for k in keys} for point in outcome["front"]
    ]


@pytest.mark.slow
def test_twenty_four_trials_on_two_workers_of_which_one_is_killed(run: Run) -> None:
    """None is lost and none trained twice; what is drawn depends on no result, so the front is that of one undisturbed worker."""
    sections = {"trials": 24, "cost": {"name": "macs", "budget": 30_000.0}, "sampler": "random"}
    search(**sections, prefilter={"name": "synflow", "of": 24, "keep": 0.5})
    assert run(killed_at(3), None) == [-signal.SIGKILL, 0]
    outcome = result()
    check_whole(outcome, 24)
    assert sum(trial["attempts"] == 2 for trial in outcome["trials"]) == 1
    assert max(trial["attempts"] for trial in outcome["trials"]) == 2
    Path("sweep").rename("killed")
    assert run(None) == [0]
    alone = result()
    keys = ("number", "params", "value", "cost")
    assert [{k: one[k] for k in keys} for one in alone["front"]] == [
        {k: one[k] for k in keys} for one in outcome["front"]
    ]
    assert [trial["value"] for trial in alone["trials"]] == [trial["value"] for trial in outcome["trials"]]


def test_the_page_has_the_front_and_its_configs_train(run: Run) -> None:
    search(trials=3, sampler={"name": "nsga2", "population": 2}, cost={"name": "parameters", "budget": 3_000.0})
    assert run(None) == [0]
    outcome = result()
    page = Path("sweep/report.html").read_text()
    assert outcome["front"] and "The Pareto front" in page and "widths.1" in page
    for point in outcome["front"]:
        assert point["command"] in page
    again = execute("finetune", outcome["front"][0]["config"], ["run.dir=again"], quiet=True)
    assert again["metrics"]["test/classifier/accuracy"] == outcome["front"][0]["value"]
    assert write_report(["sweep"], "again.html").read_text() == page
    assert "front: parameters " in Path("0.log").read_text()


def test_a_trial_beyond_the_budget_trains_nothing_and_the_samplers_know(claims: list[Claim]) -> None:
    """It is recorded with its cost; what is drawn after it still depends on seed and number."""
    study = joined(cost={"name": "macs", "budget": 15_000.0}, sampler={"name": "tpe", "startup": 1}, trials=5)
    for _ in range(5):
        claim = take(claims, study)
        cost = {"cost": 10_000 + 2_000 * claim.number}
        if study.sweep.cost is not None and study.sweep.cost.excess(cost["cost"]) > 0:
            study.leave_out(claim, cost)
        else:
            study.finish(claim, 0.1 * claim.number, cost=cost)
        claim.free()
    outcome = record_result(study)
    assert [trial["state"] for trial in outcome["trials"]] == ["complete"] * 3 + ["over budget"] * 2
    assert [trial["cost"] for trial in outcome["trials"]] == [10_000, 12_000, 14_000, 16_000, 18_000]
    assert [point["number"] for point in outcome["front"]] == [0, 1, 2] and outcome["best"]["number"] == 2
    stored = study.study.get_trials()
    assert [trial.system_attrs["constraints"][0] > 0 for trial in stored] == [False] * 3 + [True] * 2


ONE = {"search": {"backbone.args.widths": {"choice": [[4, 4, 8, 8]]}}, "trials": 3}


def test_of_equally_good_trials_the_cheapest_is_the_best(claims: list[Claim]) -> None:
    """In the result, in its command and in best.yaml."""
    study = joined(trials=3)
    for cost in (3_000, 1_000, 2_000):
        claim = take(claims, study)
        study.finish(claim, 0.5, cost={"cost": cost})
        claim.free()
    outcome = record_result(study)
    assert outcome["best"]["number"] == 1 == outcome["front"][-1]["number"]
    assert Path("sweep/front/best.yaml").read_text().startswith("# Trial 1 of the sweep sweep")
    assert sorted(path.name for path in Path("sweep/front").iterdir()) == ["best.yaml", "trial-0001.yaml"]


def test_a_point_that_was_tried_is_not_trained_again(claims: list[Claim]) -> None:
    """While the first is being trained, its repetitions wait; then they have its values."""
    first, second = joined(**ONE), joined(**ONE)
    claim = take(claims, first)
    assert second.claim() is None and first.claim() is None
    assert [trial.state for trial in first.study.get_trials()] == [TrialState.RUNNING] * 3
    first.finish(claim, 0.5, cost={"cost": 7})
    claim.free()
    assert second.claim() is None and second.finished
    outcome = record_result(second)
    assert [(trial["value"], trial["cost"], trial.get("same_as")) for trial in outcome["trials"]] == [
        (0.5, 7, None), (0.5, 7, 0), (0.5, 7, 0),
    ]  # fmt: skip
    assert [point["number"] for point in outcome["front"]] == [0]
    assert len({trial["run"] for trial in outcome["trials"]}) == 1


def test_the_repetition_of_a_failed_point_is_trained(claims: list[Claim]) -> None:
    study = joined(**ONE)
    claim = take(claims, study)
    assert study.claim() is None
    study.finish(claim, None, "no memory")
    claim.free()
    assert take(claims, study).number == 1


def test_a_waiting_repetition_is_taken_over_when_the_first_has_lost_its_owner(claims: list[Claim]) -> None:
    study = joined(**ONE)
    take(claims, study)
    assert study.claim() is None
    claims[0].free()
    again = take(claims, study)
    assert (again.number, again.before) == (0, 1)


def test_the_first_trials_are_the_best_scored_points(claims: list[Claim]) -> None:
    """For each worker, whatever the sampler; the population of NSGA-II begins with them."""
    for sampler in ("tpe", {"name": "nsga2", "population": 2}):
        name = sampler if isinstance(sampler, str) else sampler["name"]
        sections = {
            "run": {"dir": name},
            "sampler": sampler,
            "trials": 4,
            "prefilter": {"name": "synflow", "of": 4, "keep": 0.7},
        }
        one = joined(**sections)
        said: list[str] = []
        one.offer(functools.partial(offered_points, one.sweep, said.append))
        assert said == [
            "checking the searched networks",
            "scoring 4 points by synflow",
            "3 of 4 points are tried first",
        ]
        scored = sorted(scored_points(one.sweep), key=lambda candidate: -candidate.facts["score"])
        two = joined(**sections)
        two.offer(lambda: pytest.fail("the first worker has scored them"))
        drawn = [take(claims, study) for study in (one, two, one, two)]
        assert [claim.params for claim in drawn[:3]] == [candidate.params for candidate in scored[:3]]
        for claim, study in zip(drawn, (one, two, one, two), strict=True):
            study.finish(claim, 0.5, cost={"cost": 1000 + claim.number})
        assert one.finished


def test_scoring_that_was_interrupted_goes_on() -> None:
    """Points that have a score keep it; one whose file is damaged is scored anew. All is as if nothing had happened."""
    sweep = joined(prefilter={"name": "synflow", "of": 4}).sweep
    whole = offered_points(sweep, lambda line: None)
    files = sorted(Path("sweep/candidates").glob("candidate-*.json"))
    texts = [file.read_text() for file in files]
    assert len(files) == 4
    files[1].unlink()
    files[2].write_text(texts[2][:-20])
    stamp = files[0].stat().st_mtime_ns
    assert offered_points(sweep, lambda line: None) == whole
    assert [file.read_text() for file in files] == texts and files[0].stat().st_mtime_ns == stamp


def test_a_few_steps_score_by_the_objective() -> None:
    """Each point is trained for so many steps, and no more; a second look trains nothing."""
    sweep = joined(prefilter={"name": "steps", "steps": 2, "of": 2, "keep": 1.0}).sweep
    assert len(offered_points(sweep, lambda line: None)) == 2
    for candidate in scored_points(sweep):
        folder = Path(f"sweep/candidates/candidate-{candidate.number:04d}")
        outcome = json.loads((folder / "result.json").read_text())
        assert outcome["steps"] == 2
        assert outcome["metrics"]["test/classifier/accuracy"] == candidate.facts["score"]


def test_a_cost_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that is resumed has the number that it began with, and a scored point keeps its own: time is not measured twice."""
    sweep = joined(prefilter={"name": "synflow", "of": 2, "keep": 1.0}).sweep
    first, second = offered_points(sweep, lambda line: None)
    known = {json.dumps(dict(one.params)): one.facts["cost"] for one in scored_points(sweep)}
    monkeypatch.setattr("rootstock.launch.sweep.appraisal._cost", lambda *_: pytest.fail("measured again"))
    for number, params in enumerate((first, second, first)):
        sweep.folder(number).mkdir()
        assert weigh_trial(sweep, number, params) and weigh_trial(sweep, number, params)
        facts = json.loads((sweep.folder(number) / FACTS).read_text())
        assert facts["cost"] == known[json.dumps(params)]


def test_trials_that_all_cost_too_much_are_no_success(run: Run) -> None:
    """The cheapest point is within the budget, but none of those that were drawn."""
    keys = {"backbone.args.widths": {"choice": [[2, 2, 2, 2], [8, 8, 8, 8], [8, 8, 8, 16]]}}
    search(search=keys, cost={"name": "macs", "budget": 7_000.0}, trials=2, sampler={"name": "random", "seed": 0})
    assert run(None) == [1]
    said = " ".join(Path("0.log").read_text().split())
    assert "error: no trial of 2 has been trained: all cost more than cost.budget 7000 (the least: " in said
    assert "No trial has succeeded" in Path("sweep/report.html").read_text() and result()["front"] == []
