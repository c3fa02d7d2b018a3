"""`rootstock sweep`: no trial is lost or run twice when workers die, and nobody tunes on a test set by accident."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from rootstock.core.errors import UserError
from rootstock.launch.report.page import write_report
from rootstock.launch.report.records import read_run
from rootstock.launch.runs import find_runs
from rootstock.launch.sweep.page import write_sweep_page
from rootstock.launch.sweep.plan import Sweep, plan_sweep
from rootstock.launch.sweep.result import short_names
from rootstock.launch.sweep.search_space import Span
from rootstock.launch.sweep.study import Claim, Study, TrialState
from rootstock.tests.launch.sweep.conftest import Run

STEPS = 8
TINY: dict[str, Any] = {
    "data": {"train": "sklearn:digits#[:64]", "size": 16, "views": "digits"},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 8, 8]}},
    "method": {"name": "simclr", "projection": [16, 8]},
    "optim": {"name": "adamw", "lr": 1e-4, "batch_size": 16, "duration": STEPS},
    "evaluate": {"knn": {"k": 5}, "watch": None, "every": None},
    "run": {"dir": "x", "device": "cpu", "log_every": 1, "workers": 0, "checkpoint": {"every": "100%"}},
}
PROBE: dict[str, Any] = {
    "data": {"train": TINY["data"]["train"], "test": "sklearn:digits?size=16#[64:80]", "size": 16},
    "backbone": {"weights": "none"},
    "evaluate": {"knn": {"k": 5}},
    "run": {"dir": "x", "device": "cpu", "workers": 0},
}
PIPELINE: dict[str, Any] = {
    "run": {"dir": "x"},
    "seeds": 2,
    "stages": {
        "ssl": {"verb": "pretrain", "config": "tiny.yaml", "set": {"evaluate.knn": None}},
        "probe": {"verb": "probe", "config": "probe.yaml", "set": {"backbone.weights": "@ssl"}},
    },
}
SWEEP: dict[str, Any] = {
    "run": {"dir": "sweep"},
    "verb": "pretrain",
    "config": "tiny.yaml",
    "search": {
        "optim.lr": {"log": [1e-4, 1e-2]},
        "method": {"choice": ["simclr", {"name": "vicreg", "projection": [16, 8]}]},
    },
    "trials": 12,
    "objective": "test/knn/accuracy",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, config in {"tiny": TINY, "probe": PROBE, "pipeline": PIPELINE}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return tmp_path


def sweep(**sections: Any) -> str:
    """Write SWEEP with some sections replaced, None removes one; returns its path."""
    config = {key: value for key, value in {**SWEEP, **sections}.items() if value is not None}
    Path("sweep.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return "sweep.yaml"


def planned(**sections: Any) -> Sweep:
    return plan_sweep(sweep(**sections), [])


def at(step: int, number: int, to: str) -> dict[str, Any]:
    return {"at": step, "signal": number, "to": to}


def result() -> dict[str, Any]:
    return json.loads(Path("sweep/result.json").read_text())


def stored() -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="sweep", storage="sqlite:///sweep/study.db").trials


def said(log: str = "0.log") -> str:
    return " ".join(Path(log).read_text().split())


@pytest.mark.slow
def test_twelve_trials_over_two_workers_of_which_one_is_killed(run: Run) -> None:
    """The killed worker's trial is resumed by the other, as the same trial, from its checkpoint; the page shows all twelve."""
    sweep()
    assert run(at(5, signal.SIGKILL, "worker"), None) == [-signal.SIGKILL, 0]
    outcome, trials = result(), stored()
    assert [trial.number for trial in trials] == list(range(12)) == [trial["number"] for trial in outcome["trials"]]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({tuple(trial.params.items()) for trial in trials}) == 12
    assert sorted(path.name for path in Path("sweep").glob("trial-*")) == [f"trial-{n:04d}" for n in range(12)]
    for trial in outcome["trials"]:
        record = read_run(Path(trial["run"]))
        assert [row["step"] for row in record.rows if "loss" in row] == list(range(1, STEPS + 1))
        assert record.config["optim"]["lr"] == trial["params"]["optim.lr"] == trials[trial["number"]].params["optim.lr"]
        method = trial["params"]["method"]
        assert record.config["method"]["name"] == (method if method == "simclr" else method["name"])
        assert record.result["metrics"]["test/knn/accuracy"] == trial["value"]
        assert record.config["data"]["selection"] == outcome["selection"] == "train-split"
    (twice,) = (trial for trial in outcome["trials"] if trial["attempts"] > 1)
    assert twice["attempts"] == 2
    history = read_run(Path(twice["run"])).about["history"]
    assert len(history) == 2
    log = (Path(twice["run"]) / "logs" / "trial.log").read_text()
    assert "saved at step 6" in log and "resumed from step 6" in log
    assert outcome["best"]["value"] == max(trial["value"] for trial in outcome["trials"])

    assert [path.name for path in find_runs(Path("sweep"))] == [f"trial-{n:04d}" for n in range(12)]
    page = Path("sweep/report.html").read_text()
    for words in ("History", "Importance", "While training", "By lr", "All together", "12 trials", "2 x"):
        assert words in page
    assert write_report(["sweep"], "again.html").read_text() == page
    with pytest.raises(UserError, match="sweep is a sweep, which has its own page"):
        write_report(["sweep", "sweep/trial-0000"], "both.html")


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_saves_and_goes_on_later(run: Run) -> None:
    sweep()
    assert run(at(5, signal.SIGTERM, "worker"), more=("trials=1",)) == [130]
    (stopped,) = stored()
    assert stopped.state == TrialState.RUNNING and not Path("sweep/result.json").exists()
    assert json.loads(Path("sweep/trial-0000/state.json").read_text())["state"] == "preempted"
    with pytest.raises(UserError, match=r"sweep has no result.json yet; finish the sweep first"):
        write_sweep_page(Path("sweep"))
    assert run(None, more=("trials=1",)) == [0]
    assert stored()[0].params == stopped.params and stored()[0].state == TrialState.COMPLETE
    before = {path: path.read_bytes() for path in Path("sweep").rglob("*.json")}
    assert run(None, more=("trials=1",)) == [0]
    assert "sweep is finished; raise trials to go on, or choose another run.dir" in said()
    assert {path: path.read_bytes() for path in Path("sweep").rglob("*.json")} == before
    assert run(None, more=("trials=3", "--workers", "2")) == [0]
    assert len(result()["trials"]) == 3 and result()["trials"][0]["attempts"] == 2


def test_a_failed_trial_is_said_and_is_no_end(run: Run) -> None:
    """A grid of a learning rate that diverges and one that does not; a trial that another worker stopped is resumed."""
    sweep(sampler="grid", trials=None, search={"optim.lr": {"choice": [1e30, 1e-3]}})
    assert run(at(6, signal.SIGTERM, "trial")) == [0]
    failed, complete = result()["trials"]
    assert (failed["state"], failed["value"], complete["state"]) == ("failed", None, "complete")
    assert "non-finite steps in a row" in failed["why"] and f"trial 0 failed: {failed['why']}" in said()
    assert complete["attempts"] == 2
    assert result()["best"]["number"] == 1 and failed["why"] in Path("sweep/report.html").read_text()


def test_a_trial_that_the_system_kills_is_given_up_after_a_while(run: Run) -> None:
    sweep()
    assert run(at(3, signal.SIGKILL, "trial"), more=("trials=1",)) == [1]
    assert "error: no trial of 1 has succeeded: " in said()
    (killed,) = result()["trials"]
    assert killed["attempts"] == 3 and "was killed by SIGKILL 3 times" in killed["why"]
    assert result()["best"] is None and "No trial has succeeded" in Path("sweep/report.html").read_text()


def test_trials_that_all_fail_end_the_sweep(run: Run) -> None:
    sweep(sampler="grid", trials=None, search={"optim.batch_size": {"choice": [256, 257, 258, 259]}})
    assert run(None) == [2]
    assert "error: 3 trials have failed and none has finished; the last, trial 2: " in said()
    assert [trial.state for trial in stored()] == [TrialState.FAIL] * 3


def test_an_objective_that_was_not_measured_is_said_at_once(run: Run) -> None:
    sweep(objective="test/knn/acuracy")
    assert run(None) == [2]
    assert "error: objective: " in said() and "no metric test/knn/acuracy; did you mean test/knn/accuracy?" in said()
    assert len(stored()) == 1


def test_a_pipeline_is_tuned_by_its_last_stage(run: Run) -> None:
    """The value is the mean over seeds, on a held-out part of the probe's training images."""
    sections = {"verb": "run", "config": "pipeline.yaml", "objective": "probe/test/knn/accuracy", "trials": 1}
    search = {"stages.ssl.optim.lr": {"log": [1e-4, 1e-2]}}
    sweep(**sections, search=search, set={"stages.probe.data.test": None})
    assert run(None) == [0]
    for trial in result()["trials"]:
        runs = [read_run(Path(trial["run"]) / f"seed-{seed}" / "probe") for seed in (0, 1)]
        values = [one.result["metrics"]["test/knn/accuracy"] for one in runs]
        assert trial["value"] == pytest.approx(sum(values) / 2)
        assert runs[0].result["data"]["test"] == "held-out 20% by seed, over content keys"
        ssl = read_run(Path(trial["run"]) / "seed-0" / "ssl").config
        assert ssl["optim"]["lr"] == trial["params"]["stages.ssl.optim.lr"]
        assert ssl["data"]["selection"] == "train-split"
    assert len(list(find_runs(Path("sweep")))) == 4


def take(claims: list[Claim], study: Study) -> Claim:
    claim = study.claim()
    assert claim is not None
    claims.append(claim)
    return claim


def test_two_workers_never_have_the_same_trial(claims: list[Claim]) -> None:
    first, second = Study(planned()), Study(planned())
    for _ in range(6):
        for study in (first, second):
            take(claims, study)
    assert [claim.number for claim in claims] == list(range(12))
    assert len({json.dumps(claim.params) for claim in claims}) == 12
    assert first.claim() is None and not first.finished
    claims[4].free()
    again = take(claims, second)
    assert (again.number, again.params, again.before) == (4, claims[4].params, 1)
    assert first.claim() is None
    second.finish(again, 0.5)
    again.free()
    assert first.claim() is None, "a finished trial cannot be claimed"


def test_a_trial_that_ends_between_the_look_and_the_lock_is_not_taken_over(
    claims: list[Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Study(planned(trials=1)), Study(planned(trials=1))
    claim, before = take(claims, first), second.trials()
    first.finish(claim, 0.5)
    claim.free()
    assert before[0].state == TrialState.RUNNING
    monkeypatch.setattr(second, "trials", lambda: before)
    assert second.claim() is None


def test_a_kill_between_the_parameters_loses_nothing(claims: list[Claim], monkeypatch: pytest.MonkeyPatch) -> None:
    study, draw = Study(planned()), Span.draw

    def killed(span: Span, trial: optuna.Trial, key: str) -> Any:
        if key == "method":
            raise KeyboardInterrupt
        return draw(span, trial, key)

    with monkeypatch.context() as patched:
        patched.setattr(Span, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            study.claim()
    (trial,) = study.trials()
    assert list(trial.params) == ["optim.lr"]
    resumed = take(claims, Study(planned()))
    assert resumed.number == 0 and list(resumed.params) == ["optim.lr", "method"]
    assert resumed.params["optim.lr"] == trial.params["optim.lr"]
    assert len(study.trials()) == 1


def test_a_study_of_an_earlier_version_goes_on(claims: list[Claim]) -> None:
    """It lacks a key that is new since then: that had its default. Another value of a key is still refused, by name."""
    study = Study(planned())
    take(claims, study).free()
    stored = json.loads(json.dumps(study.sweep.identity))
    (name,) = stored["config"]
    del stored["config"][name]["data"]["decode"]
    study.study.set_user_attr("sweep", stored)
    assert take(claims, Study(planned())).number == 0
    stored["config"][name]["data"]["size"] += 1
    study.study.set_user_attr("sweep", stored)
    with pytest.raises(UserError, match=rf"another sweep \(config\.{name}\.data\.size: \d+ there, \d+ now\)"):
        Study(planned())


def test_parameters_are_a_function_of_seed_and_number(claims: list[Claim]) -> None:
    """Independent of the worker that draws them and of earlier draws in its process."""
    one = Study(planned(run={"dir": "one"}, storage="journal"))
    alone = [take(claims, one).params for _ in range(4)]
    by_turns = [take(claims, Study(planned(run={"dir": "two"}, storage="journal"))).params for _ in range(4)]
    assert alone == by_turns
    other = Study(planned(run={"dir": "three"}, sampler={"name": "tpe", "seed": 1}, storage="journal"))
    assert take(claims, other).params != alone[0]


def test_machines_that_share_a_database_alone_leave_each_other_s_trials(claims: list[Claim], tmp_path: Path) -> None:
    shared = {"storage": f"sqlite:///{tmp_path / 'shared.db'}", "study": "one", "trials": 3}
    here, there = (Study(planned(run={"dir": name}, **shared)) for name in ("here", "there"))
    take(claims, here).free()
    take(claims, there).free()
    assert take(claims, there).number == 1
    assert [path.name for path in Path("there").glob("trial-*")] == ["trial-0001"]
    assert take(claims, there).number == 2 and there.claim() is None


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_grid_is_every_point_once(claims: list[Claim], storage: str) -> None:
    search = {"optim.lr": {"choice": [1e-3, 1e-2]}, "optim.batch_size": {"int": [8, 10]}}
    study = Study(planned(sampler="grid", trials=None, search=search, storage=storage))
    found = [tuple(take(claims, study).params.values()) for _ in range(6)]
    assert found == [(lr, size) for lr in (1e-3, 1e-2) for size in (8, 9, 10)]
    assert study.claim() is None
    vast = {"optim.batch_size": {"int": [8, 2**50]}}
    few = Study(planned(sampler="grid", trials=2, search=vast, storage=storage, run={"dir": "vast"}))
    assert [take(claims, few).params["optim.batch_size"] for _ in range(2)] == [8, 9]


def test_what_is_drawn_lies_in_its_range(claims: list[Claim]) -> None:
    search = {"optim.lr": {"log": [1e-4, 1e-1]}, "method.temperature": {"uniform": [0.1, 0.3]}}
    search |= {"optim.batch_size": {"int": [8, 16]}}
    study = Study(planned(search=search, trials=16, sampler={"name": "random", "seed": 3}, storage="journal"))
    drawn = [take(claims, study).params for _ in range(16)]
    rates = sorted(math.log10(params["optim.lr"]) for params in drawn)
    assert rates[0] >= -4 and rates[-1] <= -1 and abs(rates[8] + 2.5) < 0.7, "as many below 10^-2.5 as above it"
    assert all(0.1 <= params["method.temperature"] <= 0.3 for params in drawn)
    assert {type(params["optim.batch_size"]) for params in drawn} == {int}
    assert {params["optim.batch_size"] for params in drawn} <= set(range(8, 17))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"search": {"optim.lrr": {"log": [1e-4, 1e-2]}}}, r"search.optim.lrr: unknown key; did you mean lr\?"),
    ({"search": {"optim.lr": {"lgo": [1e-4, 1e-2]}}}, r"search.optim.lr.lgo: unknown key; did you mean log\?"),
    ({"search": {"optim.lr": {}}}, "search.optim.lr: expected one of log, uniform, int, choice and list, got nothing"),
    ({"search": {"optim.lr": {"log": [0.0, 1.0]}}}, "search.optim.lr.log: expected ends above 0"),
    ({"search": {"optim.lr": {"uniform": [1.0, 0.5]}}}, "search.optim.lr.uniform: expected two ends, the lower first"),
    ({"search": {"optim.name": {"choice": ["adamw", "sgdd"]}}}, r'search.optim.name: with "sgdd": .*did you mean sgd\?'),
    ({"search": {"optim.name": {"choice": ["sgd", "sgd"]}}}, "search.optim.name.choice: expected different values"),
    ({"search": {"seed": {"int": [0, 5]}}}, "search.seed: a seed is no hyper-parameter"),
    ({"search": {"run.workers": {"int": [0, 5]}}}, "search.run.workers: keys under run change no result"),
    ({"search": {}}, "search: expected at least one key"),
    ({"set": {"run.dir": "x"}}, "set.run.dir: each trial gets a folder of its own"),
    ({"set": {"optim.lrr": 1}}, r"tiny.yaml: optim.lrr: unknown key; did you mean lr\?"),
    ({"config": "tny.yaml"}, r"tny.yaml: no such config.*did you mean tiny.yaml\?"),
    ({"verb": "pretrian"}, r"verb: expected .*did you mean pretrain\?"),
    ({"trials": None}, "trials: missing; say how many"),
    ({"trials": 0}, "trials: expected 1 or more, got 0"),
    ({"sampler": "grid"}, "search.optim.lr: a grid needs choice or int here"),
    (
        {"sampler": "grid", "trials": None, "search": {"optim.batch_size": {"int": [1, 10**12]}}},
        "trials: the grid has 1,000,000,000,000 points; say how many",
    ),
    (
        {"search": {"optim.batch_size": {"int": [1, 10**30]}}},
        "search.optim.batch_size.int: expected ends within 2\\*\\*53",
    ),
    ({"sampler": "tpee"}, r"sampler: unknown name tpee; did you mean tpe\?"),
    ({"objective": "tset/knn/accuracy"}, r"objective: tset/knn/accuracy names no set that is measured; did you mean test\?"),
    ({"objective": "loss"}, "objective: loss names no set that is measured"),
    ({"objective": "watch/rankme"}, "objective: watch/rankme is measured only by pretraining with evaluate.watch"),
    ({"set": {"evaluate.knn": None}}, "objective: test/knn/accuracy is not measured by this pretraining; set evaluate.knn"),
    ({"set": {"evaluate.test": "sklearn:digits"}}, "is measured on a set that evaluate.test names.*add set: {evaluate.test: null}"),
    ({"selection": "source-val"}, r"selection: source-val does not describe a choice by test/knn/accuracy; leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "words"), WRONG, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_a_mistake_is_said_before_anything_starts(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(**sections)
    assert not Path("sweep").exists()


ADAPT = {"verb": "adapt", "config": "adapt/digits_dann.yaml", "search": {"optim.lr": {"log": [1e-4, 1e-2]}}}
RUN = {"verb": "run", "config": "pipeline.yaml", "search": {"stages.ssl.optim.lr": {"log": [1e-4, 1e-2]}}}
FREE = {"data.test": None, "data.selection": "last"}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, "train-split"),
        ({"objective": None}, "train-split"),
        ({"selection": "oracle"}, "oracle"),
        ({"set": {"evaluate.test": "sklearn:digits"}, "selection": "oracle"}, "oracle"),
        ({"set": {"evaluate.test": "sklearn:digits"}, "selection": "train-split"}, "train-split"),
        ({"set": {"evaluate.watch": {}}, "objective": "watch/rankme"}, "rankme"),
        ({"set": {"data.selection": "tuned-on-target"}}, "tuned-on-target"),
        ({**ADAPT, "set": FREE, "objective": None}, "source-val"),
        ({**ADAPT, "set": FREE, "objective": "target/classifier/accuracy"}, "uses labels of the target"),
        (
            {**ADAPT, "set": FREE, "objective": "target/classifier/accuracy", "selection": "tuned-on-target"},
            "tuned-on-target",
        ),
        (
            {**ADAPT, "set": FREE, "objective": "target/classifier/accuracy", "selection": "train-split"},
            "uses labels of the target",
        ),
        ({**ADAPT, "set": {"data.test": None}, "objective": None}, "tuned-on-target"),
        ({**ADAPT, "objective": None}, "a set that data.test names"),
        ({**RUN, "objective": None}, "expected STAGE/METRIC, got nothing"),
        ({**RUN, "objective": "prob/test/knn/accuracy"}, r"no stage prob; did you mean probe\?"),
        ({**RUN, "objective": "probe/test/knn/accuracy"}, "a set that stages.probe.data.test names"),
        ({**RUN, "objective": "probe/test/knn/accuracy", "set": {"stages.probe.data.test": None}}, "train-split"),
    ],
)
def test_how_it_was_chosen_is_told_or_refused(sections: dict[str, Any], expected: str) -> None:
    """A config that admits the use of target labels keeps its word; otherwise the word says how the result was chosen."""
    if " " in expected:
        with pytest.raises(UserError, match=expected):
            planned(**sections)
    else:
        assert planned(**sections).selection == expected


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("nonsense", "storage: nonsense: Could not parse"),
        ("sqlite:////nowhere/at/all.db", "storage: sqlite:////nowhere/at/all.db: unable to open database file"),
        ("nosql://me:secret@host/name", r"storage: nosql://me:\*\*\*@host/name: Can't load plugin"),
    ],
)
def test_a_storage_that_is_none_is_said_without_its_password(storage: str, words: str) -> None:
    with pytest.raises(UserError, match=f"{words}.*expected sqlite, journal, or a database URL"):
        Study(planned(storage=storage))


def test_another_sweep_in_the_folder_or_the_study_is_refused(tmp_path: Path) -> None:
    Study(planned())
    with pytest.raises(
        UserError, match=r"the study sweep is of another sweep \(config.pretrain.optim.duration: 8 there, 9 now\)"
    ):
        Study(planned(set={"optim.duration": 9}))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "seed": 1}))
    with pytest.raises(UserError, match=r"config.pretrain.seed: 0 there, 1 now"):
        Study(planned())
    Study(planned(run={"dir": "sweep"}, set={"seed": 0}, trials=20))

    Path("sweep/trial-0000").mkdir()
    Path("sweep/study.db").unlink()
    with pytest.raises(UserError, match="holds trial-0000, which is not in the storage; restore the storage"):
        Study(planned(set={"seed": 0}))
    Path("plain").mkdir()
    Path("plain/config.yaml").write_text("verb: pretrain\n")
    with pytest.raises(UserError, match=r"plain holds something other than a sweep; choose another run.dir"):
        Study(planned(run={"dir": "plain"}))
    optuna.create_study(study_name="taken", storage="sqlite:///other.db").add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(UserError, match="the study taken holds trials that are not of a sweep"):
        Study(planned(run={"dir": "new"}, storage="sqlite:///other.db", study="taken"))


def test_without_optuna_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, rootstock: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("study", "trial", "worker"):
        monkeypatch.delitem(sys.modules, f"rootstock.launch.sweep.{name}", raising=False)
    done = rootstock("sweep", sweep())
    assert done.returncode == 2
    assert done.stderr == "error: rootstock sweep needs Optuna; `pip install 'rootstock[sweep]'`\n"


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["optim.lr", "method.lr", "optim.batch_size"]) == {
        "optim.lr": "optim.lr",
        "method.lr": "method.lr",
        "optim.batch_size": "batch_size",
    }
