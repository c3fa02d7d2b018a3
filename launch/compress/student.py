"""`rootstock distill`: a small network learns what a finished run knows, by that run's own config with another network.

Nothing that `rootstock finetune` or `rootstock pretrain` could not do: the command is said, so that it can be changed and repeated.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...core.distributed import rank
from ...core.documents import read_mapping
from ...core.errors import UserError
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.files import expanded, path_beside
from ...core.model.backbone import Backbone, create
from ...core.model.description import DESCRIPTION, read_description
from ...core.model.frozen_teacher import TEACHER_DIGEST
from ...core.model.identity import network_digest
from ...core.model.macs import macs_of, parameters_of
from ...core.run.folder import CONFIG, read_result, run_folder
from ...core.views.augmentation import PER_VIEW, probability
from ...finetune.compress.distillation import teaching_classifier
from ...ssl.distill import teacher_network
from ..aloud import say
from ..following import command
from ..report.records import read_run
from ..verbs import execute, resolve
from .outcome import difference_to

# What is left of a config of adaptation in one of fine-tuning.
SHARED_DATA = ("size", "crop", "resize", "interpolation", "views", "decode", "stamp", "selection")
NO_NETWORK: Mapping[str, Any] = {
    "weights": "none", "stem": None, "pooling": None, "positions": None, "freeze": "none", "drop_path": None, "lora": None, "args": {},
}  # fmt: skip
# Keys of fine-tuning that are about weights which the student does not have.
NO_START: Mapping[str, Any] = {
    "freeze": False, "trained": "all", "l2_sp": None, "keep_head": False, "head_init": "torch", "linear_first": False, "wise_ft": None,
    "prune": None,
}  # fmt: skip


class Lesson(NamedTuple):
    """A training of a student: verb, and the config that it would have without the user's own overrides. notes: what to know of it."""

    verb: str
    config: dict[str, Any]
    notes: list[str]


def distil_run(run: Path, student: str, overrides: Sequence[str]) -> int:
    """Train `student`, a network by name, with the run as its teacher. Returns the exit code 0. Raises UserError."""
    trained = load_trained(run)
    lesson = plan_lesson(trained, student)
    config = resolve(lesson.verb, lesson.config, overrides)
    check_test(trained, config)
    check_taught(trained, lesson.verb, config)
    say(f"distill: {lesson.verb} by the config of {run}, with {student} as the network and {run} as the teacher")
    for note in [*_sizes(trained.backbone, config), *_beginning(lesson, config), *lesson.notes]:
        say(note)
    result = execute(lesson.verb, lesson.config, overrides)
    if lesson.verb == "finetune" and rank() == 0:
        made = read_run(expanded(result["run"]))
        say(f"accuracy minus the teacher's, 95 % over test images: {difference_to(read_run(expanded(run)), made)}")
        say(f"compare: {command('report', str(run), str(result['run']))}")
    return 0


def check_test(trained: TrainedRun, config: Mapping[str, Any]) -> None:
    """Raises UserError where a student without labels has no test: of an adaptation to a union, which cannot be one test."""
    data, teacher = config["data"], config["method"].get("teacher")
    if isinstance(teacher, Mapping) and teacher.get("labels") == "teacher" and data["test"] is None:
        raise UserError(
            f"data.test: the target of {trained.folder} is a union of several sets, and it names no test; give data.test=URI, or "
            "data.test={NAME: URI, ...}"
        )


def check_taught(trained: TrainedRun, verb: str, config: Mapping[str, Any]) -> None:
    """Raises UserError if the student's folder holds what another network has taught, which the run was before it was trained anew."""
    folder, source = run_folder(str(config["run"]["dir"])), str(trained.folder)
    if read_result(folder, lambda _: None) is None or not (folder / "backbone" / DESCRIPTION).is_file():
        return  # an unfinished one asks its teacher itself
    teacher = trained.classifier
    if verb == "pretrain":
        teacher = teacher_network(source, trained.backbone, config["method"].get("teacher_size"))
    assert teacher is not None
    known = network_digest(teacher)
    for stage in read_description(str(folder))["provenance"]:
        if stage.get("teacher") == source and stage.get(TEACHER_DIGEST, known) != known:
            raise UserError(
                f"run.dir: {folder} holds a student of another network: {source} has been trained anew since; choose another folder with "
                "run.dir=..., or delete this one"
            )


def _sizes(teacher: Backbone, config: Mapping[str, Any]) -> list[str]:
    """What both networks cost; a warning where the student is no smaller. Nothing where the size of its pictures is still open."""
    size = config["data"]["size"]
    if not isinstance(size, int):
        return []
    student = create(size, teacher.channels, **config["backbone"])
    costs = [macs_of(one.model, one.channels, one.size) for one in (teacher, student)]
    numbers = [parameters_of(one.model) for one in (teacher, student)]
    said = (
        f"teacher: {costs[0] / 1e6:,.1f} million multiply-adds, {numbers[0]:,} parameters; student: {costs[1] / 1e6:,.1f} million "
        f"({costs[1] / costs[0]:.1%}), {numbers[1]:,}"
    )
    return [f"WARNING: the student is no smaller than its teacher; {said}" if costs[1] >= costs[0] else said]


def _beginning(lesson: Lesson, config: Mapping[str, Any]) -> list[str]:
    weights, length = config["backbone"]["weights"], config["optim"]["duration"]
    begun = "with random weights" if weights == "none" else f"with the weights of {weights}"
    same = " as its teacher was" if length == lesson.config["optim"]["duration"] else ""
    return [f"the student begins {begun} and is trained for {length}{same} (optim.duration)"]


def plan_lesson(trained: TrainedRun, student: str) -> Lesson:
    """The lesson by what the run is. Raises UserError for a run that cannot teach."""
    if not trained.config or "task" not in trained.result:
        raise UserError(
            f"{trained.folder} has no finished training whose config a student could take; use method.teacher of finetune, or "
            "pretrain method=distill"
        )
    task, given = str(trained.result["task"]), read_mapping(trained.folder / CONFIG)
    given = {key: value for key, value in given.items() if key != "verb"}
    teacher, name = str(trained.folder), student.replace("/", "-")
    config = copy.deepcopy(given)
    config["run"] = {**config["run"], "dir": str(path_beside(trained.folder, f"-{name}"))}
    config["backbone"] = {**NO_NETWORK, "norm": given["backbone"].get("norm", "auto"), "name": student}
    config["optim"] = {**config["optim"], "layer_decay": None, "backbone_lr": 1.0}
    notes = list[str]()
    if task == "pretrain":
        config["method"] = {"name": "distill", "teacher": teacher}
        config["data"]["views"] = _one_view(config["data"]["views"])
        if config["data"]["views"] != given["data"]["views"]:
            notes.append("it sees one view of each picture, drawn as its teacher's first one, and no local crops")
        return Lesson("pretrain", config, notes)
    teaching_classifier(trained, teacher)
    if task == "finetune":
        # A teacher that had one itself passes on whose labels count, and how much.
        taught = {**(config["method"].get("teacher") or {}), "weights": teacher}
        config["method"] = {**config["method"], **NO_START, "teacher": taught}
        return Lesson("finetune", config, notes)
    data = given["data"]
    tests, target = data.get("test"), data["target"]
    if tests is None and isinstance(target, str):
        tests = {"target": target}
    config["data"] = {key: data[key] for key in SHARED_DATA if key in data} | {"train": target, "test": tests}
    config["method"] = {"teacher": {"weights": teacher, "labels": "teacher"}}
    config.pop("evaluate", None)
    config.pop("label_shift", None)
    notes.append("it learns from the target's pictures, with the labels that its teacher gives them")
    if data.get("test") is None and tests is not None:
        notes.append(
            "the run names no test, so unless data.test is given the whole target is one; the student sees it without labels, and its "
            "result says so"
        )
    return Lesson("finetune", config, notes)


def _one_view(views: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data.views` of several views as one of the first view alone, as `distill` takes it."""
    first = {key: probability(views[key], 0) for key in PER_VIEW if key in views}
    return {**views, **first, "local": 0}
