"""The commands and snippets of README and docs/ do what the pages say. One that stands on several pages runs once."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch.distributed.run import config_from_args, parse_args

from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.launch import settle
from rootstock.launch.early import resolve_early
from rootstock.launch.pipeline import run as pipeline
from rootstock.launch.pipeline.plan import check_pipeline, plan_pipeline
from rootstock.launch.trial import pictures
from rootstock.launch.trial import run as trial
from rootstock.launch.trial.plan import RunCosts
from rootstock.tests.documents import Block, Draw, blocks, commands, drawn, given, of_kind

QUICK = {
    "pretrain": "optim.batch_size=4 optim.duration=2",
    "probe": "",
    "finetune": "optim.batch_size=4 optim.duration=2",
    "adapt": "optim.batch_size=4 optim.duration=2 evaluate.held_out=0",
    "configs/pretrain/digits_mae.yaml": "optim.batch_size=8 optim.duration=2",
}
"""What is added to a command with this config, or this verb's recipe `small`, so that it takes seconds; and `run.device=cpu`."""

# Their commands are tested in tests/launch/compress, too; the pages themselves by `make test-all`.
OF_COMPRESSION = ("docs/how-to/compress.md", "docs/how-to/distill.md", "docs/how-to/prune.md")

Rootstock = Callable[..., subprocess.CompletedProcess[str]]


def quickly(command: list[str]) -> list[str]:
    """The command with the additions of QUICK; without a config as it stands."""
    configs = [word for word in command if word.endswith(".yaml")]
    configs += [verb for verb, config in pairwise(command) if config == "small"]
    return [
        *command,
        *(word for config in configs for word in [*QUICK[config].split(), "run.device=cpu", "run.workers=0"]),
    ]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Draw) -> Path:
    monkeypatch.chdir(drawn(tmp_path, draw))
    return tmp_path


class Workspace:
    """A folder that the tests of this file share, and what has run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done = folder, set[str]()

    def once(self, command: list[str], run: Callable[[list[str]], None]) -> None:
        """Run a command that has not run here."""
        if (line := shlex.join(command)) not in self.done:
            run(command)
            self.done.add(line)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, draw: Draw) -> Workspace:
    return Workspace(drawn(tmp_path_factory.mktemp("own"), draw))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, draw: Draw) -> Workspace:
    """A classifier in the place of the run that an earlier command of the pages trains."""
    folder = drawn(tmp_path_factory.mktemp("trained"), draw)
    torch.manual_seed(0)
    Classifier(create(32, name="test_resnet"), ["cat", "dog"]).export(folder / "runs" / "sketches")
    data = "data: {source: folder:photos, target: folder:sketches, size: 32}\n"
    (folder / "runs" / "sketches" / "config.yaml").write_text(f"verb: adapt\n{data}")
    return Workspace(folder)


def check_own(command: list[str], rootstock: Rootstock) -> None:
    _, verb, *arguments = command
    # What an adaptation says beside its accuracy is examined once, in that of the README.
    brief = ["evaluate=null"] if verb == "adapt" and not any("backbone.weights" in word for word in arguments) else []
    done = rootstock(*quickly(command[1:]), *brief)
    assert done.returncode == 0, f"{verb} {arguments}: {done.stderr}"
    if verb == "data":
        assert "fingerprint" in done.stdout + done.stderr
    elif verb == "report":
        assert Path(done.stdout.strip()).read_text().lower().startswith("<!doctype html>")
    elif verb in ("pretrain", "probe", "finetune", "adapt"):
        result = json.loads((Path(given(arguments, "run.dir")) / "result.json").read_text())
        assert result["task"] == verb
        if verb == "adapt":  # sketches has labels, which only the test reads
            assert set(result["seen_unlabelled"].values()) <= {0}
            assert {key.partition("/")[0] for key in result["metrics"]} == {"source", "target"}
    elif verb in ("distill", "compress"):
        made = given(arguments, "run.dir") if verb == "distill" else arguments[arguments.index("--to") + 1]
        assert (Path(made) / ("result.json" if verb == "distill" else "compress.json")).is_file()
    else:
        assert done.stdout


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in OF_COMPRESSION else [])
        for page in dict.fromkeys(block.page for block in of_kind("own"))
    ],
)
def test_commands_on_ones_own_images(
    page: str, own: Workspace, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the pages before it come first, since they may leave the runs on which these stand."""
    monkeypatch.chdir(own.folder)
    for block in of_kind("own"):
        if block.page in OF_COMPRESSION and page not in OF_COMPRESSION:
            continue  # no other page stands on their runs
        for command in block.commands:
            own.once(command, lambda command: check_own(command, rootstock))
        if block.page == page and block is [one for one in of_kind("own") if one.page == page][-1]:
            break


def check_trained(command: list[str], rootstock: Rootstock) -> None:
    _, verb, *arguments = command
    if "--int8" in arguments or verb in ("measure", "quantize"):
        for extra in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(extra, reason=f"{extra} is not installed")
    done = rootstock(verb, *arguments, *(() if verb in ("export", "measure", "quantize") else ("--workers", "0")))
    assert done.returncode == 0, f"{verb} {arguments}: {done.stderr}"
    assert "ONNX Runtime" in done.stdout if verb == "measure" else Path(done.stdout.strip()).exists()


# `measure` starts an interpreter for each form, and tests/launch/compress/test_measure.py has it; so `make test-all` runs its command.
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=shlex.join(command), marks=[pytest.mark.slow] if command[1] == "measure" else [])
        for command in commands("trained")
    ],
)
def test_commands_on_a_trained_model(
    command: list[str], trained: Workspace, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.folder)
    trained.once(command, lambda command: check_trained(command, rootstock))


@pytest.mark.parametrize("block", of_kind("exported"), ids=lambda block: block.where)
def test_what_reads_an_export(
    block: Block, trained: Workspace, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.folder)
    for before in of_kind("trained"):
        for command in before.commands if before.page == block.page else ():
            trained.once(command, lambda command: check_trained(command, rootstock))
    found: dict[str, Any] = {}
    exec(block.body, found)
    assert found["model"].get_classifier().out_features == 2
    assert found["features"](torch.zeros(1, 3, 32, 32)).shape == (1, found["features"].num_features)


def test_commands_on_weights_of_others(here: Path, rootstock: Rootstock) -> None:
    """The file that it names, as its authors would have made it of a network of two blocks."""
    (importing, probing) = commands("import")
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_224", num_classes=0, depth=2)
    torch.save({"model": vit.state_dict(), "epoch": 1599, "args": argparse.Namespace(model="mae_vit")}, importing[2])
    done = rootstock(*importing[1:])
    assert done.returncode == 0, done.stderr
    done = rootstock(*probing[1:], "data.size=32", "run.device=cpu")
    assert done.returncode == 0, done.stderr
    result = json.loads((here / given(probing, "run.dir") / "result.json").read_text())
    assert result["task"] == "probe" and result["metrics"]


def test_a_try_is_planned(here: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the steps that are timed and the training: tests/launch/trial has the whole story."""
    planned: list[dict[str, Any]] = []
    monkeypatch.setattr(pictures, "FEWEST_PICTURES", 10)
    monkeypatch.setattr(trial, "measured", lambda verb, config: RunCosts(0.5, 1.0))
    monkeypatch.setattr(trial, "probed", lambda config: 1.0)
    monkeypatch.setattr(
        trial, "run_pipeline", lambda path, *_, **__: planned.append(yaml.safe_load(path.read_text())) or {"rows": []}
    )
    (command,) = commands("try")
    done = rootstock(*command[1:])
    assert done.returncode == 0, done.stderr
    ((pipeline),) = planned
    assert set(pipeline["stages"]) == {"pretrained", "pixels", "hog", "random", "probe", "control", "adapted"}


def test_the_python_of_the_api_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = {block.body for block in of_kind("api")}  # the same on every page
    monkeypatch.setattr(settle, "SMALLEST_BATCH", 4)  # for a few drawn pictures and two steps
    monkeypatch.setattr(settle, "FEWEST_STEPS", 2)
    monkeypatch.setattr(settle, "EPOCHS", dict.fromkeys(settle.EPOCHS, 0))
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["result"]["task"] == "finetune" and found["features"].shape[0] == 10
    assert len(found["labels"]) == 8 and set(found["labels"]) <= {"cat", "dog"}
    assert isinstance(found["network"], torch.nn.Module)


def test_templates_are_copied(here: Path, rootstock: Rootstock) -> None:
    """And those that other commands of the page submit are among them."""
    (command,) = commands("files")
    done = rootstock(*command[1:])
    assert done.returncode == 0, done.stderr
    submitted = [
        one[-1] for block in blocks() if block.kind == "not run" for one in block.commands if one[0] == "sbatch"
    ]
    assert submitted and all((here / path).is_file() for path in submitted)


@pytest.mark.parametrize("block", of_kind("grid"), ids=lambda block: block.where)
def test_a_grid_is_planned(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(f"run: {{dir: {tmp_path / 'runs'}}}\n{block.body}")
    check_pipeline(str(path), [], resolve_early)
    given = yaml.safe_load(block.body)
    _, jobs = plan_pipeline(str(path), [], resolve_early)
    assert len(jobs) == len(given["grid"]["task"]) * len(given["grid"]["method"])


def test_torchrun_is_asked_for_two_processes() -> None:
    """As torchrun itself reads the command; it starts them below."""
    (command,) = (words for words in commands("processes") if words[0] == "torchrun")
    config, program, words = config_from_args(parse_args(quickly(command)[1:]))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (1, 1, 2)
    assert program == sys.executable and words[:3] == ["-u", "-m", "rootstock"]


def check_processes(run: Path, count: int) -> None:
    assert json.loads((run / "result.json").read_text())["steps"] == 2
    assert json.loads((run / "run.json").read_text())["processes"] == count


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("processes"), ids=lambda command: command[0])
def test_commands_of_several_processes(command: list[str], here: Path) -> None:
    """Real processes; away from what an `accelerate config` of this machine's user says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HOME": str(here / "huggingface"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(quickly(command), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    check_processes(here / given(command, "run.dir"), 1 if command[0] == "accelerate" else 2)


@pytest.mark.slow
def test_searches_run(here: Path, rootstock: Rootstock) -> None:
    """With few points, and the time of the network as torch runs it."""
    few = ["trials=2", "prefilter.of=2", "cost.runtime=torch", "cost.rounds=3", "cost.budget=100.0"]
    quick = ["set.optim={batch_size: 4, duration: 2}", "set.run={device: cpu, workers: 0}"]
    for block in of_kind("sweep"):
        (here / "search.yaml").write_text(block.body)
        done = rootstock("sweep", "search.yaml", *few, *quick)
        assert done.returncode == 0, done.stderr
        result = json.loads((here / "runs/search/result.json").read_text())
        assert [trial["state"] for trial in result["trials"]] == ["complete"] * 2 and result["front"]
        assert rootstock("finetune", "runs/search/front/best.yaml").returncode == 0
        assert (here / "runs/search/front/best/result.json").exists()


@pytest.mark.parametrize("command", commands("pipeline"), ids=" ".join)
def test_commands_of_pipelines_are_planned(
    command: list[str], here: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the training, which takes minutes: tests/test_configs.py runs a small pipeline of the same shape."""
    planned: list[Any] = []

    def only_plan(path: str, overrides: list[str], execute: object, validate: Any, **_: object) -> dict[str, list[Any]]:
        planned.append(plan_pipeline(path, overrides, validate))
        return {"rows": []}

    monkeypatch.setattr(pipeline, "run_pipeline", only_plan)
    done = rootstock(*command[1:])
    assert done.returncode == 0, done.stderr
    ((config, jobs),) = planned
    assert config["seeds"] == ([0, 1, 2, 3, 4] if "seeds=5" in command else [0])
    assert len(jobs) == len(config["seeds"]) * len(config["stages"])
