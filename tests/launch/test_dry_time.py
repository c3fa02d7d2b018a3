"""`--dry-run`: the time of a run from a few real steps, a lower bound where they are too slow, and nothing left behind."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rootstock.core.errors import UserError
from rootstock.launch import dry_time, timing
from rootstock.launch.dry_time import MeasuredRun, pipeline_lines, run_lines, seconds_words, typical
from rootstock.launch.verbs import resolve

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
DIGITS = "sklearn:digits?size=16"
SMALL = {"backbone.name": "smallconv", "data.size": "16", "run.workers": "0", "run.dir": "run"}
TRAIN, TEST = f"{DIGITS}#[:64]", f"{DIGITS}#[64:90]"
VERBS: dict[str, tuple[str, list[str]]] = {
    "pretrain": (
        "digits_simclr",
        [
            f"data.train={TRAIN}",
            "evaluate.bank=null",
            "evaluate.watch=null",
            "evaluate.test=null",
            "optim.batch_size=16",
            "optim.duration=100ep",
        ],
    ),
    "finetune": ("digits", [f"data.train={TRAIN}", f"data.test={TEST}", "optim.batch_size=16", "optim.duration=90"]),
    "adapt": (
        "digits_dann",
        [
            f"data.source={TRAIN}",
            f"data.target={DIGITS}#[64:128]",
            f"data.test={TEST}",
            "optim.batch_size=16",
            "optim.duration=90",
            "evaluate.every=30",
            "evaluate.images=50",
        ],
    ),
    "probe": ("digits", [f"data.train={TRAIN}", f"data.test={TEST}"]),
}


def asked(verb: str, *more: str) -> dict[str, Any]:
    recipe, words = VERBS[verb]
    return resolve(verb, recipe, [*words, *(f"{key}={value}" for key, value in SMALL.items()), *more])


def facts_of(verb: str, place: Path, *more: str, seconds: float = 600.0) -> MeasuredRun:
    found = MeasuredRun()
    timing.measure_alone(verb, asked(verb, *more), found.add, time.perf_counter() + seconds, place)
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_measured_is_what_the_run_does(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = facts_of(verb, tmp_path / "place")
    assert not (tmp_path / "run").exists()
    lines = run_lines(found, 0.0)
    assert lines[-1] == "nothing was written; the run would go to run"
    if verb == "probe":
        assert found.facts["pictures"] == 90 and found.facts["a_picture"] > 0
        assert "features of 90 pictures at " in lines[-2] and "fitting the probes comes on top" in lines[-2]
        return
    assert found.facts["steps"] == (400 if verb == "pretrain" else 90)
    assert found.facts["evaluations"] == {"pretrain": 10, "finetune": 0, "adapt": 3}[verb]
    assert len(found.steps) == timing.TIMED_STEPS and min(found.steps) > 0
    assert ("evaluation" in found.facts) == (verb != "finetune")
    assert lines[0].startswith(f"{verb} ") and f"{found.facts['steps']} steps" in " ".join(lines)
    whole = found.time(0.0)
    assert whole is not None and not whole.bound
    expected = found.facts["steps"] * typical(found.steps) + found.facts["evaluations"] * found.facts.get(
        "evaluation", 0.0
    )
    assert whole.seconds == pytest.approx(expected)


def test_a_training_shorter_than_the_measurement_is_measured_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = facts_of("pretrain", tmp_path / "place", "optim.duration=3", "evaluate.knn=null", "evaluate.watch=null")
    assert len(found.steps) == 2 and found.facts["evaluations"] == 0
    assert facts_of("pretrain", tmp_path / "place", "optim.duration=0").steps == []


def test_steps_end_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = facts_of("finetune", tmp_path / "place", seconds=-1.0)
    assert len(found.steps) == 1  # one at least


def test_a_run_of_another_config_is_refused_and_one_that_was_begun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rootstock: Rootstock
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, words = VERBS["finetune"]
    given = [*words, *(f"{key}={value}" for key, value in SMALL.items()), "optim.duration=4"]
    assert rootstock("finetune", recipe, *given).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"optim\.duration"):
        facts_of("finetune", tmp_path / "place")
    found = facts_of("finetune", tmp_path / "place", "optim.duration=4")
    assert run_lines(found, 0.0)[-1] == "run is finished, so the run would take no time"
    (tmp_path / "run/result.json").unlink()
    found = facts_of("finetune", tmp_path / "place", "optim.duration=4")
    assert "no step is left (it goes on after step 4)" in run_lines(found, 0.0)[-2]
    del before[tmp_path / "run/result.json"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


FACTS: dict[str, Any] = {
    "run": "runs/x", "device": "cpu", "threads": 2, "log": ["pretrain simclr: 9 images"], "done": 0, "finished": False, "steps": 90_000,
    "evaluations": 10, "first": True, "config": {"data": {"size": 224}}, "compile": False,
}  # fmt: skip


def made(seconds_of: list[float], **changed: Any) -> MeasuredRun:
    found = MeasuredRun()
    for fact in (FACTS | changed, *({"step": seconds} for seconds in seconds_of)):
        found.add(fact)
    return found


def test_an_absurd_time_comes_with_a_suggestion() -> None:
    lines = run_lines(made([9.0, 0.36, 0.36, 0.36], evaluation=2.0), 0.0)
    assert (
        lines[1]
        == "on 2 threads of this CPU: about 9.0 h; 90,000 steps of 0.36 s, measured on 4, and 10 evaluations of 2 s"
    )
    assert (
        lines[2].startswith("WARNING: about 9.0 h in all on this CPU; data.size=160 takes about")
        or "data.size=96" in lines[2]
    )
    assert lines[3] == "nothing was written; the run would go to runs/x"
    assert len(run_lines(made([0.01] * 6, evaluation=0.1, steps=100), 0.0)) == 3


def test_a_step_that_does_not_end_gives_a_lower_bound() -> None:
    lines = run_lines(made([], steps=1000), 7.2)
    how = "1,000 steps, of which the first, often the slowest, had not ended after 7.2 s"
    assert lines[1] == f"on 2 threads of this CPU: probably more than 2.0 h; {how}"
    assert lines[2].startswith("WARNING: about 2.0 h in all")
    unbegun = made([], steps=1000)
    del unbegun.facts["first"]
    assert run_lines(unbegun, 7.2)[-1].startswith("no step was begun in time")
    assert "evaluations come on top, which the time was too short to measure" in run_lines(made([0.1] * 5), 0.0)[1]


def test_what_could_not_be_measured_is_said() -> None:
    assert run_lines(MeasuredRun(), 8.5) == [
        "this machine was too busy to measure a step in time; ask again when it is free"
    ]
    begun = MeasuredRun()
    begun.add({"begun": True})
    assert run_lines(begun, 8.0)[-1].startswith("no step was begun in time, so nothing is known yet")
    died = run_lines(made([]), 1.0, died=True)
    assert died[-1].startswith(
        "WARNING: the system ended the process that measured a step, probably for want of memory"
    )
    assert "measured without torch.compile" in "".join(run_lines(made([0.1], device="cuda", compile=True), 0.0))


def test_several_processes_are_told_what_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (
        "measured on one process: 4 processes on devices of their own take at best 1/4 of it"
        in run_lines(made([0.1]), 0.0)[-2]
    )
    monkeypatch.setenv("RANK", "1")
    assert dry_time.say_time("pretrain", "no such config", []) == 0  # the first process speaks


def test_stages_are_summed() -> None:
    one, other = made([0.01] * 8, steps=1000, evaluations=0), made([], steps=10, evaluations=0)
    lines = pipeline_lines({"a": one, "b": other}, {"a": 3, "b": 1, "c": 1}, 5.0, other)
    assert lines[0].startswith("a: 3 x about 10 s; 1,000 steps of 10 ms")
    assert lines[1].startswith(
        "b: probably more than 50 s; 10 steps, of which the first, often the slowest, had not ended after 5.0 s"
    )
    assert lines[2] == "c: not measured, the time was too short"
    assert lines[3] == "in all more than 80 s for 5 runs, tests and pages not counted"
    assert pipeline_lines({}, None, 1.0, one) == [dry_time.TOO_BUSY]
    assert pipeline_lines({}, {}, 1.0, one) == ["every stage is finished, so the pipeline would take no time"]
    assert pipeline_lines({"a": one}, {"a": 3}, 0.0, one)[-1].startswith("in all about 30 s for 3 runs")


def test_the_typical_step_is_no_first_one() -> None:
    assert typical([9.0]) == 9.0
    assert typical([9.0, 1.0]) == 1.0
    assert typical([9.0, 9.0, 9.0, 9.0, *range(1, 8)]) == 4
    assert [seconds_words(s) for s in (0.0123, 0.71, 3.0, 72.0)] == ["12 ms", "0.71 s", "3 s", "72 s"]


def test_a_pipeline_is_measured_with_weights_that_are_still_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {key: yaml.safe_load(value) for key, value in SMALL.items() if key != "run.dir"}

    def stage(verb: str, **more: Any) -> dict[str, Any]:
        recipe, words = VERBS[verb]
        keys = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in words)}
        return {
            "verb": verb,
            "config": f"{verb}/{recipe}.yaml",
            "set": {**keys, **small, **{k.replace("__", "."): v for k, v in more.items()}},
        }

    stages = {
        "pre": stage("pretrain", evaluate__knn=None),
        "fine": stage("finetune", backbone__weights="@pre"),
        "look": stage("probe", backbone__weights="@pre"),
    }
    Path("line.yaml").write_text(
        yaml.safe_dump({"run": {"dir": "runs/line"}, "seeds": 2, "stages": stages}, sort_keys=False)
    )
    facts: list[Any] = []
    timing.measure_pipeline("line.yaml", [], facts.append, time.perf_counter() + 600, tmp_path / "place")
    assert facts[0] == {"stages": {"pre": 2, "fine": 2, "look": 2}}
    assert [fact["stage"] for fact in facts if "stage" in fact] == ["pre", "fine", "look"]
    assert sum("step" in fact for fact in facts) == 2 * timing.TIMED_STEPS and "pictures" in facts[-1]
    assert not (tmp_path / "runs").exists()


CHILD = """
import json, sys, time
for fact in {facts}:
    print(json.dumps(fact), flush=True)
{end}
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any], str], None]:
    """Let the process that measures be a program that tells these facts and then ends in this way."""
    popen: Any = subprocess.Popen

    def instead(facts: list[Any], end: str) -> None:
        program = CHILD.format(facts=repr(facts), end=end)

        def started(command: list[str], **options: Any) -> Any:
            assert command[:3] == [sys.executable, "-m", "rootstock.launch.timing"] and Path(command[4]).is_dir()
            (tmp_path / "place").write_text(command[4])
            return popen([sys.executable, "-c", program], **options)

        monkeypatch.setattr(dry_time.subprocess, "Popen", started)

    return instead


def test_the_process_is_ended_when_its_time_is_over(
    child: Callable[[list[Any], str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child([{"begun": True}, FACTS, {"step": 0.5}, {"step": 0.25}], "time.sleep(600)")
    assert dry_time.say_time("pretrain", "simclr", [], limit=1.5) == 0
    said = capsys.readouterr().out
    assert re.search(r"about 6\.2 h; 90,000 steps of 0\.25 s, measured on 2; 10 evaluations come on top", said)
    assert not Path((tmp_path / "place").read_text()).exists()


def test_its_mistakes_are_ours(child: Callable[[list[Any], str], None], capsys: pytest.CaptureFixture[str]) -> None:
    child([{"begun": True}], "sys.exit(2)")
    assert dry_time.say_time("pretrain", "simclr", [], limit=60.0) == 2
    child([{"begun": True}, FACTS], "import os; os.kill(os.getpid(), 9)")
    assert dry_time.say_time("pretrain", "simclr", [], limit=60.0) == 0
    assert "the system ended the process that measured a step" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["pretrain", "probe", "finetune", "adapt", "run", "demo"])
def test_every_training_verb_has_it(verb: str, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(dry_time, "say_time", lambda *words: asked.append(words) or 0)
    config = {"run": ["simclr_probe"], "demo": []}.get(verb, ["small"])
    assert rootstock(verb, *config, "run.dir=x", "--dry-run").returncode == 0
    ((named, path, overrides),) = asked
    assert named == {"demo": "run"}.get(verb, verb) and overrides == ["run.dir=x"]
    assert Path(path).stem == (config or ["demo"])[0]


def test_facts_are_lines_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, words = VERBS["probe"]
    assert (
        timing.main(
            ["60", str(tmp_path / "p"), "probe", recipe, *words, *(f"{key}={value}" for key, value in SMALL.items())]
        )
        == 0
    )
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (
        facts[0] == {"begun": True} and facts[-1]["pictures"] == 90 and torch.get_num_threads() == facts[1]["threads"]
    )
    assert timing.main(["60", str(tmp_path / "p"), "probe", recipe, "data.train=folder:none"]) == 2
    assert "folder:none" in capsys.readouterr().err
