"""benchmarks/uda_runs.py at the scale of two runs on digits, and the grid that it makes at full scale."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from rootstock.core.errors import UserError
from rootstock.core.files import sha256
from rootstock.launch.early import resolve_early
from rootstock.launch.pipeline.plan import check_pipeline
from rootstock.launch.scoring import score_validators
from rootstock.launch.verbs import execute

DIGITS = "sklearn:digits?size=12"
BASE = {
    "data": {
        "source": f"{DIGITS}#[:120,seed=1]",
        "target": f"{DIGITS}#[120:200,seed=1]",
        "test": f"{DIGITS}#[220:250,seed=1]",
        "size": 12,
        "views": "none",
    },
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}, "freeze": "all"},
    "method": {"name": "mcc", "bottleneck": 6},
    "optim": {"name": "sgd", "lr": 0.5, "batch_size": 16, "duration": 4},
    "evaluate": {"images": 50, "held_out": 0.2, "every": "50%", "half": True},
    "run": {"dir": "runs/x", "workers": 0, "device": "cpu", "checkpoint": {"every": "100%"}},
}


@pytest.fixture(scope="module")
def made(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("uda_runs")


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    content = {
        "run": {"dir": str(tmp_path / "out")},
        "grid": {"setting": {"weak": {"method.trade_off": 0.3}, "strong": {"method.trade_off": 3, "optim.lr": 2.0}}},
        "stages": {"digits-{setting}": {"verb": "adapt", "config": "base.yaml"}},
    }
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_runs_are_made_packed_and_deleted_one_by_one_and_the_same_again(
    made: ModuleType, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def work(verb: str, config: str, overrides: Sequence[str], quiet: bool) -> Mapping[str, Any]:
        done.append(config)
        return execute(verb, config, overrides, quiet)

    committed, packed = tmp_path / "few.sha256", tmp_path / "out" / "packed"
    words = [str(pipeline), "--committed", str(committed)]
    assert made.main([*words, "--limit", "1"], work) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 runs, 0 of them packed before; 2 to make, of which 1 now: about 3.5 s at 3.5 s a run")
    assert len(done) == 1 and not committed.exists()
    first = packed / "digits-weak.seed-0.candidates.safetensors"
    once = first.read_bytes()
    assert {
        rows.dtype.itemsize for name, rows in load_file(first).items() if name.endswith(("features", "logits"))
    } == {2}
    assert made.main(words, work) == 0
    assert "1 of them packed before; 1 to make" in capsys.readouterr().out and len(done) == 2
    assert not list((tmp_path / "out" / "seed-0").iterdir())  # each run is deleted once it is packed
    listed = [line.split() for line in committed.read_text().splitlines()[1:]]
    assert listed == [[sha256(packed / name), name] for _, name in listed] and len(listed) == 2

    first.unlink()
    assert made.main(words, work) == 0
    assert first.read_bytes() == once and [line.split() for line in committed.read_text().splitlines()[1:]] == listed
    assert made.main(words, work) == 0 and len(done) == 3
    page = committed.with_suffix(".md").read_text()
    assert page.startswith("# few\n\nMachine: ") and "| default rule |" in page and "| im |" in page

    capsys.readouterr()
    assert score_validators([packed], ["im", "entropy"], None, None, True, 1) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["runs"], table["tasks"], table["candidates"]) == (2, 1, 4) and not table["passed_over"]
    with pytest.raises(UserError, match="made with another config"):
        made.main([*words, "stages.digits-weak.optim.lr=0.1"], work)


def test_a_run_that_diverges_stops_no_other(
    made: ModuleType, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(verb: str, config: str, overrides: Sequence[str], quiet: bool) -> Mapping[str, Any]:
        raise UserError("the training has diverged")

    committed = tmp_path / "none.sha256"
    assert made.main([str(pipeline), "--committed", str(committed)], work) == 1
    said = capsys.readouterr().out
    assert said.count("WARNING") == 2 and "0 of 2 runs" in said
    assert committed.read_text().count("\n") == 1


def test_time_is_foreseen_by_the_last_runs(made: ModuleType) -> None:
    assert made.expected([]) == made.GUESSED
    assert made.expected([100.0] * 10 + [2.0] * 50) == 2.0
    assert made.plan_words(2000, 1200, 1200, [2.0]) == (
        "2,000 runs, 800 of them packed before; 1,200 to make: about 40 min 00 s at 2.0 s a run, as the last 1 took"
    )


def test_half_a_line_of_the_times_is_passed_over(made: ModuleType, tmp_path: Path) -> None:
    (tmp_path / made.TIMES).write_text('{"name": "a", "seconds": 1.5}\n{"name": "b", "sec')
    assert made.times(tmp_path) == [1.5] and made.times(tmp_path / "none") == []


def test_the_grid_is_of_two_thousand_runs(made: ModuleType, tmp_path: Path) -> None:
    content = yaml.safe_load(Path(made.CONFIG).read_text())
    count = len(content["grid"]["task"]) * len(content["grid"]["setting"])
    assert content["seeds"] * count == 2000
    _, jobs = check_pipeline(made.CONFIG, ["seeds=1", f"run.dir={tmp_path}"], resolve_early)
    assert len({job.fingerprint for job in jobs}) == len(jobs) == count
    assert all(job.resolved["evaluate"]["half"] and job.resolved["method"]["bottleneck"] == 256 for job in jobs)
    assert {job.resolved["optim"]["lr"] for job in jobs} == {0.003, 0.01, 0.03}
