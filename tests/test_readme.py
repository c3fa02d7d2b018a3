"""Every command of the README runs, and what it says about folders, configs and verbs is so."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import typer
import yaml
from torch.distributed.run import config_from_args, parse_args

from rootstock.core.images.open import open_images
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.launch import settle
from rootstock.launch.cli import app
from rootstock.launch.pipeline import run as pipeline
from rootstock.launch.pipeline.plan import plan_pipeline
from rootstock.launch.trial import pictures
from rootstock.launch.trial import run as trial
from rootstock.launch.trial.plan import RunCosts
from rootstock.tests.conftest import Forks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICK = {
    "pretrain": "optim.batch_size=4 optim.duration=2",
    "probe": "",
    "finetune": "optim.batch_size=4 optim.duration=2",
    "adapt": "optim.batch_size=4 optim.duration=2 evaluate.held_out=0",
    "configs/pretrain/digits_mae.yaml": "optim.batch_size=8 optim.duration=2",
}
"""What is added to a command with this config, or this verb's recipe `small`, so that it takes seconds; and `run.device=cpu`."""

Rootstock = Callable[..., subprocess.CompletedProcess[str]]


class Block(NamedTuple):
    kind: str  # of its mark <!-- test: KIND -->; "" without one
    commands: list[list[str]]


def blocks() -> list[Block]:
    """Every ```sh block, each line as a shell would split it."""
    found = re.findall(r"(?:<!-- test: (\w+) -->\n)?```sh\n(.*?)```", README, re.DOTALL)
    assert len(found) == README.count("```sh")
    found = [(kind, body.replace("\\\n", " ").replace("&&", "\n").splitlines()) for kind, body in found]
    return [
        Block(kind, [words for line in lines if (words := shlex.split(line, comments=True))]) for kind, lines in found
    ]


def commands(kind: str) -> list[list[str]]:
    chosen = [command for block in blocks() if block.kind == kind for command in block.commands]
    assert chosen, f"no block is marked <!-- test: {kind} -->"
    return chosen


def quickly(command: list[str]) -> list[str]:
    """The command with the additions of QUICK; without a config as it stands."""
    configs = [word for word in command if word.endswith(".yaml")]
    configs += [verb for verb, config in pairwise(command) if config == "small"]
    return [*command, *(word for config in configs for word in [*QUICK[config].split(), "run.device=cpu"])]


def given(command: list[str], key: str) -> str:
    (value,) = [word.partition("=")[2] for word in command if word.startswith(f"{key}=")]
    return value


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Callable[[Path, Iterable[str]], Path]) -> Path:
    """A folder of one's own with the pictures that the README speaks of."""
    classes = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)]
    draw(tmp_path / "photos", classes)
    draw(tmp_path / "sketches", classes)
    draw(tmp_path / "unlabeled", [f"{i}.jpg" for i in range(8)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_covered() -> None:
    # "method" is what tests/test_walkthrough.py runs.
    assert {block.kind for block in blocks()} == {
        "",
        "own",
        "try",
        "trained",
        "import",
        "processes",
        "pipeline",
        "method",
    }
    programs = {
        "own": {"rootstock"},
        "try": {"rootstock"},
        "trained": {"rootstock"},
        "import": {"rootstock"},
        "processes": {"rootstock", "torchrun", "accelerate"},
        "pipeline": {"rootstock"},
        "method": {"rootstock"},
    }
    for block in blocks():
        assert {command[0] for command in block.commands} <= programs.get(block.kind, {"make", "."})


def test_setting_up_is_what_the_makefile_does() -> None:
    """The commands without a mark: targets of the Makefile, and the environment that it makes."""
    makefile = (ROOT / "Makefile").read_text()
    for program, *arguments in commands(""):
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE), arguments
        elif program == ".":
            assert arguments == [f"{re.search(r'^VENV := (.*)', makefile, re.MULTILINE)[1]}/bin/activate"]  # pyright: ignore[reportOptionalSubscript]
        else:
            raise AssertionError(f"not covered: {program}")


def test_commands_on_ones_own_images(here: Path, rootstock: Rootstock) -> None:
    """One after another, since each stands on the runs of those before it."""
    result: dict[str, Any] = {}
    for _, verb, *arguments in commands("own"):
        done = rootstock(*quickly([verb, *arguments]))
        assert done.returncode == 0, f"{verb} {arguments}: {done.stderr}"
        if verb == "data":
            assert "fingerprint" in done.stdout + done.stderr
        elif verb == "report":
            assert Path(done.stdout.strip()).read_text().lower().startswith("<!doctype html>")
        else:
            result = json.loads((here / given(arguments, "run.dir") / "result.json").read_text())
            assert result["task"] == verb
    assert result["seen_unlabelled"] == {"pretrain": 0, "adapt": 0}
    tests = {key.partition("/")[0] for key in result["metrics"]}
    assert tests == {"source", "target"}  # sketches has labels, which only the test reads


def test_commands_on_a_trained_model(here: Path, rootstock: Rootstock) -> None:
    """A classifier in the place of the run that an earlier block of the README trains."""
    torch.manual_seed(0)
    Classifier(create(32, name="test_resnet"), ["cat", "dog"]).export(here / "runs" / "sketches")
    data = "data: {source: folder:photos, target: folder:sketches, size: 32}\n"
    (here / "runs" / "sketches" / "config.yaml").write_text(f"verb: adapt\n{data}")
    for _, verb, *arguments in commands("trained"):
        if "--int8" in arguments:  # the last one
            model = timm.create_model("local-dir:exported/sketches", pretrained=True)
            assert model.get_classifier().out_features == 2  # pyright: ignore[reportCallIssue]
            for extra in ("onnx", "onnxscript", "onnxruntime"):
                pytest.importorskip(extra, reason=f"{extra} is not installed")
        done = rootstock(verb, *arguments, *(() if verb == "export" else ("--workers", "0")))
        assert done.returncode == 0, f"{verb} {arguments}: {done.stderr}"
        assert Path(done.stdout.strip()).exists()


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
    monkeypatch.setattr(
        trial, "run_pipeline", lambda path, *_, **__: planned.append(yaml.safe_load(path.read_text())) or {}
    )
    (command,) = commands("try")
    done = rootstock(*command[1:])
    assert done.returncode == 0, done.stderr
    ((pipeline),) = planned
    assert set(pipeline["stages"]) == {"pretrained", "pixels", "hog", "random", "probe", "control", "adapted"}


def test_the_python_of_the_api_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(import rootstock\.api as rs\n.*?)```", README, re.DOTALL)
    monkeypatch.setattr(settle, "SMALLEST_BATCH", 4)  # for a few drawn pictures and two steps
    monkeypatch.setattr(settle, "FEWEST_STEPS", 2)
    monkeypatch.setattr(settle, "EPOCHS", dict.fromkeys(settle.EPOCHS, 0))
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["result"]["task"] == "finetune" and found["features"].shape[0] == 10
    assert len(found["labels"]) == 8 and set(found["labels"]) <= {"cat", "dog"}
    assert isinstance(found["network"], torch.nn.Module)


def test_torchrun_is_asked_for_two_processes(here: Path, forks: Forks) -> None:
    """As torchrun itself reads the command, and in two processes with the variables that it gives them; torchrun starts them below."""
    (command,) = (words for words in commands("processes") if words[0] == "torchrun")
    config, program, words = config_from_args(parse_args(quickly(command)[1:]))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (1, 1, 2)
    assert program == sys.executable and words[:3] == ["-u", "-m", "rootstock"]
    script = here / "started.py"
    script.write_text("from rootstock.launch.cli import main\nmain()\n")
    forks.group(script, *words[3:])
    check_processes(here / given(command, "run.dir"), 2)


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


@pytest.mark.parametrize("command", commands("pipeline"), ids=" ".join)
def test_commands_of_pipelines_are_planned(
    command: list[str], here: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the training, which takes minutes: tests/test_configs.py runs a small pipeline of the same shape."""
    planned: list[Any] = []

    def only_plan(path: str, overrides: list[str], execute: object, validate: Any, **_: object) -> None:
        planned.append(plan_pipeline(path, overrides, validate))

    monkeypatch.setattr(pipeline, "run_pipeline", only_plan)
    done = rootstock(*command[1:])
    assert done.returncode == 0, done.stderr
    ((config, jobs),) = planned
    assert config["seeds"] == ([0, 1, 2, 3, 4] if "seeds=5" in command else [0])
    assert len(jobs) == len(config["seeds"]) * len(config["stages"])


def test_the_layout_is_the_repositorys() -> None:
    named = re.findall(r"^\| `(\w+)/` \|", README, re.MULTILINE)
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    held = {path.name for path in folders if path.name not in ignored and path.suffix != ".egg-info"}
    assert set(named) == held and len(named) == len(held)


def test_configs_and_verbs_that_it_names_exist() -> None:
    written = set(re.findall(r"<!-- test: file (configs/\S+) -->", README))  # by who follows "Adding a method"
    for config in set(re.findall(r"\bconfigs/[\w/]+\.yaml", README)) - written:
        assert (ROOT / config).is_file(), config
    verbs = set(typer.main.get_group(app).commands)
    spoken = set(re.findall(r"(?:^|`|rootstock -m |-m )rootstock ([a-z]\w*)", README, re.MULTILINE))
    assert spoken and spoken <= verbs


def test_sets_that_it_names_open(here: Path) -> None:
    fragments = re.findall(r"`(folder:photos[^`]*)`", README)
    assert len(fragments) >= 3
    assert all(0 < len(open_images(uri)) <= 10 for uri in fragments)
