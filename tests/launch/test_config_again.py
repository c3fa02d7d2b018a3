"""A run's config.yaml is a config again: with another run.dir it is the same experiment, for every verb."""

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rootstock.launch.pipeline.plan import check_pipeline
from rootstock.launch.verbs import resolve

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
ONE = ["optim.duration=1", "optim.batch_size=8", "run.workers=0"]
NETWORK = "backbone={name: smallconv, args: {widths: [4, 4, 6, 8]}}"
PHOTOS, FROM = ["data.train=folder:photos"], "backbone.weights=runs/pretrain, every auto"
TRAIN, TEST = "sklearn:digits?size=16#[:24]", "sklearn:digits?size=16#[24:48]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, draw: Callable[[Path, Iterable[str]], Path]) -> Path:
    folder = tmp_path_factory.mktemp("again")
    draw(folder / "photos", (f"{'ab'[i % 2]}/{i}.png" for i in range(24)))
    base = {"extends": "finetune/digits.yaml", "data": {"train": TRAIN, "test": TEST, "size": 16}}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "mine.yaml").write_text(yaml.safe_dump({"extends": "base.yaml", "method": {"label_smoothing": 0.05}}))
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


CASES: dict[str, tuple[str, str, list[str]]] = {
    "pretrain, every auto": ("pretrain", "small", [*PHOTOS, "optim.duration=1", "run.workers=0", "evaluate.watch=null"]),
    "probe of a run": ("probe", "small", [*PHOTOS, FROM, "evaluate.linear=null"]),
    "finetune by a chain of files": ("finetune", "mine.yaml", [*ONE, NETWORK, "run.checkpoint.every=1"]),
    "finetune of a run": ("finetune", "small", [*PHOTOS, FROM, *ONE]),
    "adapt, a seed in its URIs": (
        "adapt", "digits_dann",
        ["seed=3", "data.source=sklearn:digits?size=16#[:24,seed={seed}]", "data.target=sklearn:digits?size=16#[24:48,seed={seed}]",
         "data.test=null", "data.size=16", NETWORK, "evaluate=null", *ONE],
    ),
    "adapt of a classifier": (
        "adapt", "small",
        ["data.source=folder:photos", "data.target=folder:photos#[:50%]", "data.test=null", "evaluate=null", *ONE, FROM],
    ),
}  # fmt: skip


def without_place(folder: Path) -> dict[str, Any]:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["run"].pop("dir")
    return config


@pytest.mark.parametrize("case", CASES)
def test_the_same_experiment(case: str, here: Path, rootstock: Rootstock) -> None:
    verb, recipe, words = CASES[case]
    first, second = here / "runs" / case, here / "runs" / f"{case} again"
    done = rootstock(verb, recipe, *words, f"run.dir=runs/{case}")
    assert done.returncode == 0, done.stderr
    assert "auto" not in {
        value
        for section in without_place(first).values()
        if isinstance(section, dict)
        for key, value in section.items()
        if key in ("size", "name", "batch_size", "duration")
    }
    done = rootstock(verb, f"runs/{case}/config.yaml", f"run.dir=runs/{case} again")
    assert done.returncode == 0, done.stderr
    assert without_place(second) == without_place(first)
    for name in ("backbone/backbone.safetensors", "classifier/classifier.safetensors", "predictions.safetensors"):
        assert (first / name).exists() == (second / name).exists()
        if (first / name).exists():
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    if verb != "pretrain":
        assert rootstock("pretrain", f"runs/{case}/config.yaml").stderr.startswith(
            f"error: runs/{case}/config.yaml: verb: this is a config of rootstock {verb}"
        )


def test_a_key_of_the_second_command_counts(here: Path) -> None:
    again = resolve(
        "adapt", "runs/adapt, a seed in its URIs/config.yaml", ["seed=4", "method=adabn", "run.dir=runs/other"]
    )
    assert again["seed"] == 4 and again["method"]["name"] == "adabn" and "{seed}" in again["data"]["source"]


def test_a_pipeline(here: Path, rootstock: Rootstock) -> None:
    """Its stages name files beside it, which lies in another folder than the run."""
    (here / "deep").mkdir()
    (here / "deep" / "own.yaml").write_text((here / "mine.yaml").read_text().replace("base.yaml", "../base.yaml"))
    network = yaml.safe_load(NETWORK.partition("=")[2])
    few = {"data.train": TRAIN, "data.test": TEST, "data.size": 16, "evaluate.linear": None}
    stages = {
        "train": {
            "verb": "finetune",
            "config": "own.yaml",
            "set": {"optim.duration": 1, "optim.batch_size": 8, "backbone": network},
        },
        "look": {
            "verb": "probe",
            "config": "probe/digits.yaml",
            "set": {**few, "backbone.name": None, "backbone.weights": "@train"},
        },
    }
    line = {"run": {"dir": "runs/line"}, "stages": stages}
    (here / "deep" / "line.yaml").write_text(yaml.safe_dump(line, sort_keys=False))
    done = rootstock("run", "deep/line.yaml", "stages.train.method.label_smoothing=0.2")
    assert done.returncode == 0, done.stderr
    assert "finished before" in rootstock("run", "runs/line/config.yaml").stderr  # in the same folder the same pipeline
    config, jobs = check_pipeline("runs/line/config.yaml", ["run.dir=runs/other"], resolve)
    _, first = check_pipeline("deep/line.yaml", ["stages.train.method.label_smoothing=0.2"], resolve)
    for job, before in zip(jobs, first, strict=True):
        assert str(job.resolved).replace("runs/other", "runs/line") == str(before.resolved)
    assert jobs[0].resolved["method"]["label_smoothing"] == 0.2 and config["run"]["dir"] == "runs/other"
