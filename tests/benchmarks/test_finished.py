"""benchmarks/finished.py: the table made from unpacked runs is the table of the runs themselves, and what was missing is run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from rootstock.core.run.folder import read_result
from rootstock.launch.pipeline.run import run_pipeline
from rootstock.launch.verbs import execute, resolve

DIGITS = "sklearn:digits?size=12"
NET = {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}}
RUN = {"workers": 0, "device": "cpu", "keep": "results", "checkpoint": {"every": "100%"}}
TRAINED = {
    "data": {"train": f"{DIGITS}#[:100,seed=1]", "test": f"{DIGITS}#[220:250,seed=1]", "size": 12, "views": "none"},
    "backbone": NET,
    "optim": {"name": "sgd", "lr": 0.5, "batch_size": 16, "duration": 4},
    "run": {**RUN, "dir": "runs/x", "keep": "all"},
}
ADAPTED = {
    "data": {
        "source": f"{DIGITS}#[:100,seed=1]",
        "target": f"{DIGITS}#[120:200,seed=1]",
        "test": f"{DIGITS}#[220:250,seed=1]",
        "size": 12,
        "views": "none",
    },
    "backbone": NET,
    "method": {"name": "mcc"},
    "optim": {"name": "sgd", "lr": 0.1, "batch_size": 16, "duration": 4},
    "run": {**RUN, "dir": "runs/x"},
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "trained.yaml").write_text(yaml.safe_dump(TRAINED))
    (tmp_path / "adapted.yaml").write_text(yaml.safe_dump(ADAPTED))
    content = {
        "run": {"dir": str(tmp_path / "runs")},
        "seeds": 2,
        "stages": {
            "trained": {"verb": "finetune", "config": "trained.yaml"},
            **{
                name: {
                    "verb": "adapt",
                    "config": "adapted.yaml",
                    "set": {"backbone.weights": "@trained", "method.trade_off": weight},
                }
                for name, weight in (("control", 0), ("mcc", 1))
            },
        },
        "report": {
            "title": "two",
            "rows": [
                {"label": name, "stage": name, "metric": "test/classifier/accuracy"} for name in ("control", "mcc")
            ],
            "comparisons": [{"label": "MCC minus control", "a": "mcc", "b": "control", "primary": True}],
        },
    }
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.slow
def test_unpacked_runs_are_finished_and_make_the_same_table(
    script: Callable[[str], ModuleType], pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, runs, place, ran = script("finished"), tmp_path / "runs", tmp_path / "packed", []

    def work(verb: str, config: str, overrides: list[str], quiet: bool = False) -> dict[str, object]:
        ran.append(next(word.rpartition("/")[2].rstrip('"') for word in overrides if word.startswith("run.dir=")))
        return execute(verb, config, overrides, quiet=quiet)

    run_pipeline(pipeline, [], work, resolve)
    assert len(ran) == 6
    table = (runs / "table.md").read_bytes()
    intervals = read_result(runs, lambda _: None)
    # A seed that is complete needs no weights; in the other one a stage that uses some is missing.
    shutil.rmtree(runs / "seed-1" / "mcc")
    assert made.main(["pack", str(pipeline)], place) == 0
    packed = {path.name: path.read_bytes() for path in place.iterdir()}
    assert set(packed) == {"table.contrasts.json", "table.seed-0.tar.xz", "table.seed-1.tar.xz"}
    shutil.rmtree(runs)
    assert made.main(["unpack", str(pipeline)], place) == 0
    weights = {
        path.relative_to(runs).parts[0] for path in runs.rglob("*.safetensors") if path.parent.name == "backbone"
    }
    assert weights == {"seed-1"}
    del ran[:]
    run_pipeline(pipeline, [], work, resolve)
    assert ran == ["mcc"]
    assert (runs / "table.md").read_bytes() == table
    assert read_result(runs, lambda _: None) == intervals  # those over images, too
    shutil.rmtree(runs / "seed-1" / "mcc")
    assert made.main(["pack", str(pipeline)], place) == 0  # of unpacked runs, and once more
    assert {path.name: path.read_bytes() for path in place.iterdir()} == packed
    own = runs / "seed-0" / "mcc" / "mine.txt"
    own.write_text("mine")
    shutil.rmtree(runs / "seed-0" / "control")
    capsys.readouterr()
    assert made.main(["unpack", str(pipeline)], place) == 0  # what is there is not replaced
    assert capsys.readouterr().out.count("1 runs put back") == 1 and own.read_text() == "mine"
    assert read_result(runs / "seed-0" / "control", lambda _: None) is not None


def test_before_any_run_is_finished_nothing_is_packed(
    script: Callable[[str], ModuleType], pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("finished").main(["pack", str(pipeline), "seeds=1"], tmp_path / "packed") == 0
    assert capsys.readouterr().out == "seed 0: 0 of 3 runs packed\n" and not (tmp_path / "packed").exists()
