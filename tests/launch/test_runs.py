"""`rootstock runs`: each way a run can end is told, from the files that it left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rootstock.core.errors import UserError
from rootstock.core.run import state
from rootstock.core.train import loop
from rootstock.launch.runs import age_in_words, find_runs, list_runs, row_of
from rootstock.tests.conftest import Forks

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ["data.train=sklearn:digits#[:64]", "optim.batch_size=16", "run.workers=0", "evaluate=null"]


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    list_runs(folder, as_json=True)
    return {row["run"]: row for row in json.loads(capsys.readouterr().out)}


def leave(run: Path, **files: object) -> Path:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(files.get("config", {"seed": 3, "verb": "pretrain"})))
    (run / "run.json").write_text(json.dumps({"verb": "pretrain", "host": "node7"}))
    rows = files.get("rows", [])
    assert isinstance(rows, list)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "result" in files:
        (run / "result.json").write_text(json.dumps(files["result"]))
    return run


def test_real_runs_end_in_each_way(tmp_path: Path, rootstock: Rootstock, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished, failed of the user's mistake with its sentence, and stopped; a finished run asked again stays as it was."""
    config = "pretrain/digits_simclr.yaml"
    common = [*SMALL, "optim.duration=3", "optim.warmup=0"]
    assert rootstock("pretrain", config, *common, f"run.dir={tmp_path / 'good'}").returncode == 0
    assert rootstock("pretrain", config, *common, f"run.dir={tmp_path / 'good'}").returncode == 0
    bad = rootstock("pretrain", config, *common, "optim.batch_size=128", f"run.dir={tmp_path / 'bad'}")
    assert bad.returncode == 2
    rows = listed(tmp_path, capsys)
    assert list(rows) == ["bad", "good"]
    good, bad_row = rows["good"], rows["bad"]
    assert (good["state"], good["step"], good["steps"], good["metric"]) == ("finished", 3, 3, "loss")
    assert bad_row["state"] == "failed" and f"error: {bad_row['why']}" in bad.stderr
    list_runs(tmp_path, as_json=False)
    said = capsys.readouterr().out
    assert "3 of 3" in said and str(bad_row["why"])[:40] in said


KILLED = """
import os, signal
from rootstock.core.train import loop
from rootstock.launch.cli import main

loop.Loop.step = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def test_a_stopped_run_and_a_killed_one_are_told_apart(
    tmp_path: Path,
    rootstock: Rootstock,
    forks: Forks,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And from one that still runs: the first looks at itself before it asks itself to stop."""
    straight, seen = loop.Loop.step, []

    def stepping(self: loop.Loop, *given: Any) -> dict[str, Any]:
        seen.append(row_of(runs / "stopped", runs).state)
        signal.raise_signal(signal.SIGTERM)
        return straight(self, *given)

    runs, program = tmp_path / "runs", tmp_path / "killed.py"
    command = ["pretrain", "pretrain/digits_simclr.yaml", *SMALL, "optim.duration=100000", "optim.warmup=0"]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "step", stepping)
        assert rootstock(*command, f"run.dir={runs / 'stopped'}").returncode == 130
    assert seen == ["running"]
    program.write_text(KILLED)
    (killed,) = forks(program, [[*command, f"run.dir={runs / 'killed'}"]])
    assert killed.code == -signal.SIGKILL, killed.said
    found = listed(runs, capsys)
    assert {name: row["state"] for name, row in found.items()} == {"stopped": "preempted", "killed": "killed"}
    assert found["stopped"]["steps"] == 100000 == found["killed"]["steps"]


def test_runs_of_pipelines_are_found_and_nothing_inside_a_run_is(tmp_path: Path) -> None:
    leave(tmp_path / "alone")
    leave(tmp_path / "alone" / "checkpoints" / "nested")
    pipeline = tmp_path / "all"
    pipeline.mkdir()
    (pipeline / "config.yaml").write_text(yaml.safe_dump({"stages": {"a": {}}, "seeds": [0, 1]}))
    for seed in (1, 0):
        leave(pipeline / f"seed-{seed}" / "a")
    leave(pipeline / "other" / "b")
    assert [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)] == [
        "all/seed-0/a",
        "all/seed-1/a",
        "alone",
    ]
    assert list(find_runs(tmp_path / "alone")) == [tmp_path / "alone"]


def test_the_step_is_that_of_the_newest_checkpoint_or_row(tmp_path: Path) -> None:
    """Rows are logged every ten steps; a run that is stopped saves at the very step, and says so."""
    run = leave(tmp_path / "run", rows=[{"step": 40, "loss": 2.0}, {"step": 50, "loss": 1.5}])
    state.write_state(run, "preempted", 100)
    assert row_of(run, tmp_path).step == 50
    for name in ("step-00000020", "step-00000051", "step-odd", ".step-00000090"):
        (run / "checkpoints" / name).mkdir(parents=True)
    assert row_of(run, tmp_path).step == 51


def test_a_row_tells_the_newest_accuracy_or_else_the_loss(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"step": 1, "loss": 2.0, "accuracy": 0.1}, {"step": 2, "loss": 1.5}]
    plain = row_of(leave(tmp_path / "plain", rows=rows), tmp_path)
    assert (plain.metric, plain.value, plain.host, plain.seed) == ("loss", 1.5, "node7", 3)
    assert plain.state == "killed" and plain.step is None  # of an earlier version, without state.json
    watched = leave(tmp_path / "watched", rows=[*rows, {"step": 2, "test/knn/accuracy": 0.4}])
    state.write_state(watched, "preempted", 8)
    seen = row_of(watched, tmp_path)
    assert (seen.metric, seen.value, seen.step, seen.steps) == ("test/knn/accuracy", 0.4, 2, 8)
    result = {"task": "probe", "metrics": {"test/knn/accuracy": 0.7, "test/linear/accuracy": 0.8}}
    measured = row_of(leave(tmp_path / "measured", result=result), tmp_path)
    assert (measured.state, measured.metric, measured.value) == ("finished", "test/knn/accuracy", 0.7)
    os.utime(tmp_path / "measured" / "config.yaml", (0, 0))
    assert measured.age < time.time()


def test_json_holds_no_number_that_json_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path / "run", rows=[{"step": 1, "loss": float("inf")}])
    list_runs(tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)[0]["value"] is None


@pytest.mark.parametrize("text", ["", "[]", '{"state"', '{"host": "a"}'])
def test_a_damaged_state_is_no_state(tmp_path: Path, text: str) -> None:
    (tmp_path / state.FILE).write_text(text)
    said = state.read_state(tmp_path)
    assert said["state"] == "killed" and f"{tmp_path / state.FILE} is damaged" in said["why"]


@pytest.mark.parametrize(("name", "words"), [("empty", "holds no run"), ("missing", "does not exist")])
def test_a_folder_without_runs_is_said(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name} {words}; expected a folder with runs below it"):
        list_runs(tmp_path / name, as_json=False)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.0, "59 s"), (61.0, "1 min"), (7300.0, "2 h"), (86400.0 * 3.9, "3 d")]
)
def test_ages_are_spoken(seconds: float, said: str) -> None:
    assert age_in_words(seconds) == said


def test_one_bad_run_blinds_neither_the_list_nor_a_report(
    tmp_path: Path, rootstock: Rootstock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of damage beside a good run: the good one is listed and shown, the bad one is named."""
    good = {"task": "probe", "seed": 1, "metrics": {"test/knn/accuracy": 0.7}, "steps": None}
    leave(tmp_path / "good", result=good)
    texts = [
        b"",
        b"\0\0\0",
        b"{",
        b"\xff\xfe\x00",
        b"[1]",
        b'{"metrics": 3}',
        b'{"metrics": {"a": NaN}}',
        b'{"seconds": "x"}',
    ]
    for name in ("result.json", "run.json", "metrics.jsonl", "config.yaml", "map.json"):
        for k, text in enumerate([*texts, None]):
            run = leave(tmp_path / f"{name}-{k}", result=good)
            (run / name).unlink(missing_ok=True)
            (run / name).mkdir() if text is None else (run / name).write_bytes(text)
    rows = listed(tmp_path, capsys)
    assert rows["good"]["state"] == "finished" and rows["good"]["why"] == "" and len(rows) == 46
    for name in ("result.json", "config.yaml"):
        assert all(name in str(rows[f"{name}-{k}"]["why"]) for k in (0, 1, 2, 3, 8) if f"{name}-{k}" in rows)
    list_runs(tmp_path, as_json=False)
    page = tmp_path / "all.html"
    runs = [str(path) for path in sorted(tmp_path.iterdir()) if path.is_dir()]
    done = rootstock("report", *runs, "--out", str(page))
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    for name in ("result.json", "run.json", "config.yaml", "map.json"):
        for k in (1, 2, 3, 8):
            assert any(f"/{name}-{k}/{name}" in line for line in said), (name, k)
    assert "Left out: " in page.read_text() and "Damaged: " in page.read_text()


def test_the_list_reads_each_file_once_and_imports_nothing_heavy(tmp_path: Path) -> None:
    """200 runs took 8.9 s, most of it for YAML and for importing torch."""
    for k in range(3):
        leave(tmp_path / f"run-{k}", result={"task": "probe", "metrics": {}})
    script = """
import collections, os, sys
opened = collections.Counter()
def watch(event, given):
    if event == "open" and isinstance(given[0], (str, bytes)):
        opened.update([os.fsdecode(given[0])])
sys.addaudithook(watch)
from pathlib import Path
from rootstock.launch.runs import list_runs
list_runs(Path(sys.argv[1]), True)
print([name for name in ("torch", "numpy", "matplotlib", "pydantic") if name in sys.modules], file=sys.stderr)
print([path for path in opened if path.startswith(sys.argv[1]) and opened[path] > 3], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == ["[]", "[]"], done.stderr
