"""rootstock distill: what a student gets of its teacher's config, by what the teacher is; and that it trains."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rootstock.core.errors import UserError
from rootstock.core.evaluate.trained import TrainedRun, load_trained
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.core.views.augmentation import PER_VIEW
from rootstock.launch.compress.student import distil_run, plan_lesson
from rootstock.launch.dry import build_dry
from rootstock.launch.verbs import execute, resolve

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
DIGITS = "sklearn:digits?size=8"
SMALL: dict[str, Any] = {
    "backbone": {"name": "smallconv"},
    "optim": {"name": "adamw", "lr": 5e-3, "batch_size": 50, "duration": 4},
    "run": {"workers": 0, "device": "cpu"},
}
RECIPES = sorted(path.stem for path in (Path(__file__).parents[3] / "configs" / "pretrain").glob("*.yaml"))
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
    assert lesson.notes[-1].startswith("the run names no test, so unless data.test is given the whole target is one")


@pytest.mark.parametrize("verb", ["finetune", "pretrain"])
def test_a_student_of_a_run_that_was_trained_anew_is_not_taken_for_its_student(
    verb: str, teachers: Path, tmp_path: Path
) -> None:
    run = tmp_path / "teacher"
    shutil.copytree(teachers / verb, run)
    overrides = [f"run.dir={tmp_path / 'student'}"]
    assert distil_run(run, "smallconv", overrides) == distil_run(run, "smallconv", overrides) == 0
    trained = load_trained(run)
    with torch.no_grad():
        next(trained.backbone.parameters()).add_(1.0)
    (trained.classifier or trained.backbone).export(run)
    (run / "MANIFEST.json").unlink()
    with pytest.raises(UserError) as refused:
        distil_run(run, "smallconv", overrides)
    assert str(refused.value) == (
        f"run.dir: {tmp_path / 'student'} holds a student of another network: {run} has been trained anew since; choose another folder "
        "with run.dir=..., or delete this one"
    )


def test_a_target_of_several_sets_takes_the_test_that_is_given(teachers: Path, tmp_path: Path) -> None:
    run = tmp_path / "adapted"
    shutil.copytree(teachers / "adapt", run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["target"] = [f"{DIGITS}#[100:150,seed=1]", f"{DIGITS}#[150:200,seed=1]"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "MANIFEST.json").unlink()
    where = f"run.dir={tmp_path / 'student'}"
    with pytest.raises(UserError) as refused:
        distil_run(run, "smallconv", [where])
    assert str(refused.value) == (
        f"data.test: the target of {run} is a union of several sets, and it names no test; give data.test=URI, or "
        "data.test={NAME: URI, ...}"
    )
    assert not (tmp_path / "student").exists()
    for test in (f"{DIGITS}#[200:260,seed=1]", f"{{a: '{DIGITS}#[200:230,seed=1]', b: '{DIGITS}#[230:260,seed=1]'}}"):
        assert distil_run(run, "smallconv", [f"{where}{len(test)}", f"data.test={test}"]) == 0


def finished(folder: Path, config: dict[str, Any]) -> TrainedRun:
    """What was exported into the folder, as the run of a finished verb with this config."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    verb = "pretrain" if "name" in config["method"] else "finetune"
    return load_trained(folder)._replace(result={"task": verb}, config=config)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shipped_pretraining_can_teach(recipe: str, tmp_path: Path) -> None:
    few = f"{DIGITS.replace('8', '32')}#[:8]"
    config = resolve("pretrain", f"pretrain/{recipe}.yaml", [f"data.train={few}", "data.size=32"])
    views = config["data"]["views"]
    create(32, name="smallconv").export(tmp_path)
    lesson = plan_lesson(finished(tmp_path, config), "smallconv")
    small = [
        "optim.batch_size=4",
        "optim.duration=2",
        "evaluate.knn=null",
        "evaluate.linear=null",
        "evaluate.watch=null",
    ]
    _, built = build_dry("pretrain", resolve("pretrain", lesson.config, [*small, "run.device=cpu"]))
    assert not (tmp_path / "cache").exists()
    assert built.plan.method.views == 1 and lesson.config["optim"]["lr"] == config["optim"]["lr"]
    changed = views["local"] or any(isinstance(views[key], list) for key in PER_VIEW)
    assert lesson.notes == (
        ["it sees one view of each picture, drawn as its teacher's first one, and no local crops"] if changed else []
    )
    taught = lesson.config["data"]["views"]
    assert taught["blur"] == (views["blur"][0] if isinstance(views["blur"], list) else views["blur"])
    assert {key for key in views if taught[key] != views[key]} <= {"local", *PER_VIEW}


@pytest.mark.parametrize(
    ("section", "key", "expected"),
    [
        ({"teacher": {"weights": "runs/first", "labels": "teacher", "temperature": 2.0}}, "labels", "teacher"),
        ({"teacher": {"weights": "runs/first", "labels": "teacher", "temperature": 2.0}}, "temperature", 2.0),
        ({"teacher": {"weights": "runs/first", "weight": 0.5}}, "weight", 0.5),
        ({"teacher": None}, "labels", "given"),
    ],
)
def test_a_student_is_taught_as_its_teacher_was(
    section: dict[str, Any], key: str, expected: object, tmp_path: Path
) -> None:
    Classifier(create(8, name="smallconv"), ["0", "1"]).export(tmp_path)
    given = {**SMALL, **TEACHERS["finetune"], "method": section, "run": {"dir": str(tmp_path)}}
    lesson = plan_lesson(finished(tmp_path, resolve("finetune", given)), "smallconv")
    taught = resolve("finetune", lesson.config)["method"]["teacher"]
    assert taught["weights"] == str(tmp_path) and taught[key] == expected


@pytest.mark.parametrize("prune", [{"macs": 0.5}, {"weights": 0.8}])
def test_a_pruned_run_teaches_a_student_that_is_not_pruned(prune: dict[str, float], tmp_path: Path) -> None:
    Classifier(create(8, name="smallconv"), [str(i) for i in range(10)]).export(tmp_path)
    method = {"keep_head": True, "prune": prune}
    given = {**SMALL, **TEACHERS["finetune"], "method": method, "run": {**SMALL["run"], "dir": str(tmp_path)}}
    given["backbone"] = {"weights": "runs/whole"}
    lesson = plan_lesson(finished(tmp_path, resolve("finetune", given)), "smallconv")
    _, built = build_dry("finetune", resolve("finetune", lesson.config))
    assert built.pruned is None


def test_what_knows_unknown_images_teaches_by_features_alone(tmp_path: Path) -> None:
    Classifier(create(8, name="smallconv"), ["0", "1"], structure=Structure(extra=1)).export(tmp_path)
    open_set = finished(tmp_path, {**SMALL, **TEACHERS["finetune"], "run": {}})._replace(result={"task": "adapt"})
    with pytest.raises(UserError) as refused:
        plan_lesson(open_set, "smallconv")
    assert str(refused.value) == (
        f"{tmp_path} has an output for unknown images, which no student has; teach by features (`rootstock pretrain` with method=distill), "
        "or give a classifier without `unknown`"
    )


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
