"""rootstock distill: what a student gets of its teacher's config, by what the teacher is; and that it trains."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rootstock.core.errors import UserError
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.model.backbone import create
from rootstock.launch.compress.student import plan_lesson
from rootstock.launch.verbs import execute

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
DIGITS = "sklearn:digits?size=8"
SMALL: dict[str, Any] = {
    "backbone": {"name": "smallconv"},
    "optim": {"name": "adamw", "lr": 5e-3, "batch_size": 50, "duration": 4},
    "run": {"workers": 0, "device": "cpu"},
}
TEACHERS: dict[str, dict[str, Any]] = {
    "finetune": {
        "data": {"train": f"{DIGITS}#[:200,seed=1]", "test": f"{DIGITS}#[200:260,seed=1]", "size": 8, "views": "none"},
        "method": {"linear_first": True, "dropout": 0.1},
        "seed": 3,
    },
    "pretrain": {
        "data": {"train": f"{DIGITS}#[:200,seed=1]", "size": 8, "views": "digits"},
        "method": {"name": "simclr", "projection": [16, 8]},
        "evaluate": {"watch": None},
    },
    "adapt": {
        "data": {
            "source": f"{DIGITS}#[:100,seed=1]",
            "target": f"{DIGITS}#[100:200,seed=1]",
            "size": 8,
            "views": "none",
        },
        "method": {"name": "dann", "hidden": 8},
        "label_shift": {"resamples": 0},
    },
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    for verb, config in TEACHERS.items():
        execute(verb, {**SMALL, **config, "run": {**SMALL["run"], "dir": str(folder / verb)}}, quiet=True)
    return folder


def test_a_student_of_a_classifier(teachers: Path, rootstock: Rootstock, tmp_path: Path) -> None:
    run = tmp_path / "student"
    done = rootstock("distill", str(teachers / "finetune"), "--student", "lenet", f"run.dir={run}", "data.size=8")
    assert done.returncode == 2 and "lenet" in done.stderr  # a digit of 8 px is too small for it
    done = rootstock(
        "distill",
        str(teachers / "finetune"),
        "--student",
        "smallconv",
        "backbone.args={widths: [4, 4, 6, 8]}",
        f"run.dir={run}",
    )
    assert done.returncode == 0, done.stderr
    assert (
        "the student begins with random weights and is trained for 4 as its teacher was (optim.duration)" in done.stderr
    )
    assert "\nteacher: " in done.stderr and "WARNING: the student" not in done.stderr
    assert "\naccuracy minus the teacher's, 95 % over test images: " in done.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["task"] == "finetune" and result["seed"] == 3 and result["steps"] == 4
    described = json.loads((run / "classifier" / "backbone.json").read_text())
    assert described["args"] == {"widths": [4, 4, 6, 8]} and described["provenance"][0]["teacher"] == str(
        teachers / "finetune"
    )
    method = plan_lesson(load_trained(teachers / "finetune"), "smallconv").config["method"]
    assert method["dropout"] == 0.1 and not method["linear_first"]


def test_a_student_of_a_pretraining_and_of_an_adaptation(teachers: Path, tmp_path: Path) -> None:
    lesson = plan_lesson(load_trained(teachers / "pretrain"), "smallconv")
    assert lesson.verb == "pretrain" and lesson.config["method"] == {
        "name": "distill",
        "teacher": str(teachers / "pretrain"),
    }
    assert lesson.config["run"]["dir"] == str(teachers / "pretrain-smallconv")
    assert execute("pretrain", lesson.config, [f"run.dir={tmp_path / 'p'}"], quiet=True)["steps"] == 4
    lesson = plan_lesson(load_trained(teachers / "adapt"), "smallconv")
    assert lesson.verb == "finetune" and lesson.config["method"]["teacher"]["labels"] == "teacher"
    assert (
        lesson.config["data"]["train"] == TEACHERS["adapt"]["data"]["target"] and "source" not in lesson.config["data"]
    )
    found = execute("finetune", lesson.config, [f"run.dir={tmp_path / 'a'}"], quiet=True)
    assert set(found["metrics"]) >= {"target/classifier/accuracy"} and found["seen_labelled"] == 0
    assert found["seen_unlabelled"] == {"adapt": 80, "finetune": 100}  # the teacher held a fifth out as its test
    assert lesson.notes[-1].startswith("the run names no test, so the whole target is one")


def test_refusals(teachers: Path, rootstock: Rootstock, tmp_path: Path) -> None:
    create(8, name="smallconv").export(tmp_path / "imported")
    imported = load_trained(tmp_path / "imported")
    with pytest.raises(UserError) as refused:
        plan_lesson(imported, "smallconv")
    assert str(refused.value) == (
        f"{tmp_path / 'imported'} has no finished training whose config a student could take; use method.teacher of finetune, or pretrain "
        "method=distill"
    )
    done = rootstock("distill", str(teachers / "finetune"))
    assert (done.returncode, done.stderr) == (
        2,
        "error: --student: missing; name a network, for example --student mobilenetv3_small_050\n",
    )
    done = rootstock("distill", "runs/nowhere", "--student", "smallconv")
    assert done.returncode == 2 and "runs/nowhere does not exist" in done.stderr
    done = rootstock("distill", str(teachers / "finetune"), "--student", "resnet81", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "unknown backbone 'resnet81'" in done.stderr
