"""Before the first stage of a pipeline, each stage is built: what can be known is said then, all at once, and nothing is written."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rootstock.core.config.resolve import ConfigError
from rootstock.launch.dry import build_untrained
from rootstock.launch.pipeline.plan import plan_pipeline
from rootstock.launch.pipeline.preflight import check_buildable
from rootstock.launch.verbs import resolve

SMALL = {
    "data.size": 16, "backbone.args": {"widths": [8, 8, 8, 16]}, "run.workers": 0, "run.device": "cpu", "optim.batch_size": 4,
    "optim.duration": 2,
}  # fmt: skip
PROBE = {key: value for key, value in SMALL.items() if not key.startswith("optim.")} | {
    "data.train": "folder:photos",
    "data.test": None,
}
NO_NAME = {"backbone.name": None, "backbone.args": {}}
STAGES: dict[str, dict[str, Any]] = {
    "ssl": {"verb": "pretrain", "config": "pretrain/digits_simclr.yaml", "set": {**SMALL, "data.train": "folder:photos", "evaluate": None}},
    "probe": {"verb": "probe", "config": "probe/digits.yaml", "set": {**PROBE, "backbone.weights": "@ssl", **NO_NAME}},
    "tuned": {
        "verb": "finetune", "config": "finetune/digits.yaml",
        "set": {**SMALL, "data.train": "folder:photos", "data.test": None, "backbone.weights": "@ssl", **NO_NAME},
    },
    "again": {"verb": "probe", "config": "probe/digits.yaml", "set": {**PROBE, "backbone.weights": "@tuned/classifier", **NO_NAME}},
    "taught": {
        "verb": "finetune", "config": "finetune/digits.yaml",
        "set": {**SMALL, "data.train": "folder:photos", "data.test": None, "method.teacher.weights": "@tuned"},
    },
    "distilled": {
        "verb": "pretrain", "config": "pretrain/digits_simclr.yaml",
        "set": {**SMALL, "data.train": "folder:photos", "evaluate": None, "method": {"name": "distill", "teacher": ["@ssl", "@tuned"]}},
    },
    "adabn": {
        "verb": "adapt", "config": "adapt/digits_dann.yaml",
        "set": {
            **SMALL, "data.source": "folder:photos", "data.target": "folder:photos", "data.test": None, "method": "adabn",
            "backbone.weights": "@tuned", **NO_NAME, "optim.duration": 0,
        },
    },
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Callable[[Path, Iterable[str]], Path]) -> Path:
    draw(tmp_path / "photos", [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(changes: dict[str, dict[str, Any]], built: list[str] | None = None) -> None:
    stages = {name: {**entry, "set": {**entry["set"], **changes.get(name, {})}} for name, entry in STAGES.items()}
    Path("pipeline.yaml").write_text(
        yaml.safe_dump({"run": {"dir": "out"}, "seeds": 2, "stages": stages}, sort_keys=False)
    )
    _, jobs = plan_pipeline("pipeline.yaml", [], resolve)

    def build(verb: str, config: dict[str, Any], export: Path | None) -> None:
        build_untrained(verb, config, export)
        if built is not None:
            built.append(Path(config["run"]["dir"]).name)

    check_buildable("pipeline.yaml", jobs, build)


def test_what_can_be_built_is_built_once_and_leaves_nothing(here: Path) -> None:
    built: list[str] = []
    check({}, built)
    assert built == list(STAGES)
    assert sorted(path.name for path in here.iterdir()) == ["photos", "pipeline.yaml"]
    finished = here / "out" / "seed-0" / "probe"
    finished.mkdir(parents=True)
    (finished / "result.json").write_text("{}")
    built.clear()
    check({}, built)
    assert built == [name for name in STAGES if name != "probe"]


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("probe", {"data.train": "folder:nowhere"}, "nowhere"),
        ("probe", {"data.test": {"a": "list:missing.txt"}}, "missing.txt"),
        ("probe", {"evaluate.fewshot": {"shots": 6}}, "fewshot: class cat has 5 different training images, fewer than shots = 6"),
        ("probe", {"backbone.args": {"widths": [1, 1, 1, 1]}}, "backbone.args: {'widths': [1, 1, 1, 1]} contradicts"),
        ("ssl", {"backbone.args": {"widths": [0, 8, 8, 8]}}, "backbone: smallconv cannot be built for data.size 16"),
        ("ssl", {"backbone.name": "resnet19", "backbone.args": {}}, "backbone.name: unknown backbone 'resnet19'"),
        ("ssl", {"optim.batch_size": 64}, "batch_size"),
        ("tuned", {"backbone.weights": "moco.pth.tar", "backbone.name": None}, "backbone.weights: moco.pth.tar"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_said_before_anything_runs(
    here: Path, stage: str, change: dict[str, Any], said: str
) -> None:
    (here / "moco.pth.tar").write_bytes(b"weights")
    with pytest.raises(ConfigError) as caught:
        check({stage: change})
    (problem,) = caught.value.problems
    assert problem.startswith(f"stages.{stage}: ") and said in problem
    assert not (here / "out").exists()


def test_all_stages_are_named_at_once_and_those_that_follow_are_not(here: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check({"ssl": {"data.train": "folder:nowhere"}, "adabn": {"data.target": "folder:elsewhere"}})
    (first,) = caught.value.problems  # the others take the weights of ssl, of which nothing is known
    assert first.startswith("stages.ssl: ")
    with pytest.raises(ConfigError) as caught:
        check({"probe": {"data.train": "folder:nowhere"}, "adabn": {"data.target": "folder:elsewhere"}})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["stages.probe", "stages.adabn"]


def test_what_another_stage_starts_from_is_kept(here: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check({"tuned": {"run.keep": "results"}, "adabn": {"run.keep": "results"}})
    (problem,) = caught.value.problems
    assert problem.startswith("stages.tuned: run.keep: results removes what another stage starts from")


def test_a_full_temporary_disk_is_no_mistake_of_the_pipeline(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(verb: str, config: dict[str, Any], export: Path | None) -> None:
        raise OSError(28, "No space left on device")

    _, jobs = plan_pipeline("demo.yaml", ["run.dir=out"], resolve)
    check_buildable("demo.yaml", jobs, full)
