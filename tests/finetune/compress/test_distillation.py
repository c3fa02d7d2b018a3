"""Distillation of a classifier: the loss against a loop, the teacher's columns, its labels, what is counted as seen, and refusals."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.core.model.backbone import create
from rootstock.finetune.compress.distillation import soft_cross_entropy
from rootstock.launch.verbs import execute

DIGITS = "sklearn:digits?size=8"
TRAIN, TEST = f"{DIGITS}#[:200,seed=1]", f"{DIGITS}#[200:260,seed=1]"
CONFIG: dict[str, Any] = {
    "data": {"train": TRAIN, "test": TEST, "size": 8, "views": "none"},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}},
    "optim": {"name": "adamw", "lr": 5e-3, "batch_size": 50, "duration": 6},
    "run": {"workers": 0, "device": "cpu"},
}


def run(folder: Path, *overrides: str, **sections: Any) -> dict[str, Any]:
    return execute(
        "finetune", {**CONFIG, **sections, "run": {**CONFIG["run"], "dir": str(folder)}}, overrides, quiet=True
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    run(folder, "optim.duration=60", seed=3)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def slow(student: Tensor, target: Tensor, temperature: float) -> float:
    total = 0.0
    for s, t in zip((student / temperature).tolist(), (target / temperature).tolist(), strict=True):
        p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (t, s))
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_that_of_a_loop(temperature: float) -> None:
    student, target = 3.0 * torch.randn(2, 5, 7, dtype=torch.float64)
    found = soft_cross_entropy(student, target, temperature)
    assert float(found) == pytest.approx(slow(student, target, temperature), rel=1e-10)
    assert float(soft_cross_entropy(target, target + 2.0, temperature)) == pytest.approx(0.0, abs=1e-12)


def test_the_gradient_at_a_high_temperature_is_that_of_matched_logits() -> None:
    """Section 2.1 of the paper: (z - v) / K, of logits with mean 0, the mean over rows."""
    student, target = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student = (student - student.mean(1, keepdim=True)).requires_grad_()
    target = target - target.mean(1, keepdim=True)
    soft_cross_entropy(student, target, 1e5).backward()
    torch.testing.assert_close(student.grad, (student.detach() - target) / 5 / 3, rtol=1e-3, atol=1e-6)


def test_a_run_with_a_teacher(teacher: Path, tmp_path: Path) -> None:
    section = {"weights": str(teacher), "temperature": 2.0, "weight": 0.5}
    found = run(tmp_path / "taught", "run.log_every=1", method={"teacher": section})
    alone = run(tmp_path / "alone", "run.log_every=1")
    logged = [row for row in rows(tmp_path / "taught") if "distillation" in row]
    assert len(logged) == 6 and all(0 <= row["teacher_agreement"] <= 1 for row in logged)
    # The first step begins with the same weights: (1 - 0.5) L + 0.5 D.
    first = next(row for row in rows(tmp_path / "alone") if "loss" in row)
    assert logged[0]["loss"] == pytest.approx(0.5 * first["loss"] + 0.5 * logged[0]["distillation"], rel=1e-5)
    assert found["metrics"].keys() == alone["metrics"].keys() and found["seen_labelled"] == 0
    described = json.loads((tmp_path / "taught" / "classifier" / "backbone.json").read_text())
    assert [(s.get("teacher"), s["task"]) for s in described["provenance"]] == [
        (str(teacher), "finetune"),
        (None, "finetune"),
    ]
    saved = [*(tmp_path / "taught" / "checkpoints").glob("step-*/model.safetensors")][-1]
    names = load_file(saved).keys()
    assert "teaching.frozen.digest" in names and len([n for n in names if n.startswith("teaching")]) == 1


def test_a_teacher_that_was_trained_on_the_test_is_counted(teacher: Path, tmp_path: Path) -> None:
    data = {**CONFIG["data"], "train": f"{DIGITS}#[300:400,seed=1]", "test": f"{DIGITS}#[180:220,seed=1]"}
    found = run(tmp_path / "run", data=data, method={"teacher": {"weights": str(teacher)}})
    assert found["seen_labelled"] == 20


def test_the_teachers_labels_are_learned_and_no_others(teacher: Path, tmp_path: Path) -> None:
    method = {"teacher": {"weights": str(teacher), "labels": "teacher"}}
    found = run(tmp_path / "run", method=method)
    assert found["seen_unlabelled"] == {"finetune": 0} and found["seen_labelled"] == 0
    said = load_file(tmp_path / "run" / "checkpoints" / "kept" / "teacher_labels.safetensors")["labels"]
    truth = open_images(TRAIN).labels
    assert truth is not None and 0.5 < float((said == truth).double().mean()) < 1.0
    # With all weight on the teacher, whose labels they are makes no difference to the weights.
    for name, labels in (("own", "given"), ("theirs", "teacher")):
        run(tmp_path / name, method={"teacher": {"weights": str(teacher), "labels": labels, "weight": 1.0}})
    own, theirs = (load_file(tmp_path / n / "classifier" / "backbone.safetensors") for n in ("own", "theirs"))
    assert all(torch.equal(own[key], theirs[key]) for key in own)


@pytest.mark.parametrize(
    ("section", "data", "said"),
    [
        ({"temperature": 0.0}, {}, "method.teacher.temperature: expected more than 0, got 0.0; 1 to 4 is usual"),
        ({"weight": 0.0}, {}, "method.teacher.weight: expected above 0 and at most 1, got 0.0; 0.9 is usual"),
        ({"weight": 1.5}, {}, "method.teacher.weight: expected above 0 and at most 1, got 1.5; 0.9 is usual"),
        (
            {"weights": "runs/nowhere"},
            {},
            "method.teacher.weights: runs/nowhere does not exist; give the folder of a finished run, such as runs/NAME",
        ),
        (
            {"labels": "teacher"},
            {"test": None},
            "method.teacher.labels: with the teacher's labels none of the training images' own is read, so no test can be held out of "
            "them; set data.test",
        ),
    ],
)  # fmt: skip
def test_refusals(teacher: Path, tmp_path: Path, section: dict[str, Any], data: dict[str, Any], said: str) -> None:
    method = {"teacher": {"weights": str(teacher), **section}}
    with pytest.raises(UserError) as refused:
        run(tmp_path / "run", method=method, data={**CONFIG["data"], **data})
    assert str(refused.value) == said


def test_a_teacher_of_other_classes_or_without_is_refused(teacher: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    images = open_images(TRAIN)
    for name in ("0", "cat"):
        (pictures / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(images.read(i + 4 * (name == "cat")).permute(1, 2, 0).numpy()).save(
                pictures / name / f"{i}.png"
            )
    data = {**CONFIG["data"], "train": f"folder:{pictures}", "test": f"folder:{pictures}"}
    with pytest.raises(UserError) as refused:
        run(tmp_path / "run", data=data, method={"teacher": {"weights": str(teacher)}})
    assert str(refused.value) == (
        f"method.teacher.weights: {teacher} has 10 classes and data.train 2, and 1, 2, 3, 4, ... are not in both; give a teacher of the "
        "same classes"
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    create(8, name="smallconv").export(bare)
    with pytest.raises(UserError, match=r"has no classifier; give a run of finetune or adapt$"):
        run(tmp_path / "other", method={"teacher": {"weights": str(bare)}})
    section = {"weights": str(teacher), "labels": "teacher"}
    with pytest.raises(UserError, match=r"^evaluate\.held_out: with method\.teacher\.labels: teacher, held-out images"):
        run(tmp_path / "third", method={"teacher": section}, evaluate={"held_out": 0.2})


def test_pictures_without_labels_of_which_the_teacher_says_one_class(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    picture = open_images(TRAIN).read(0).permute(1, 2, 0).numpy()
    for i in range(4):
        Image.fromarray(picture + (picture < 200).astype("uint8") * i).save(pictures / f"{i}.png")
    data = {**CONFIG["data"], "train": f"folder:{pictures}"}
    config = {**CONFIG, "data": data, "method": {"teacher": {"weights": str(teacher), "labels": "teacher"}}}
    execute("finetune", config, ["optim.batch_size=2", "optim.duration=1", f"run.dir={tmp_path / 'run'}"])
    said = "WARNING: method.teacher: the teacher says of all 4 training images that they are "
    assert said in "".join(capsys.readouterr())


def test_a_teacher_of_other_channels_is_refused_before_it_is_asked(teacher: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "five.npz", x=np.zeros((4, 5, 8, 8), np.uint8))
    data = {**CONFIG["data"], "train": f"npz:{tmp_path / 'five.npz'}?layout=NCHW"}
    with pytest.raises(UserError) as refused:
        run(tmp_path / "run", data=data, method={"teacher": {"weights": str(teacher), "labels": "teacher"}})
    assert str(refused.value) == (
        f"method.teacher.weights: {teacher} takes pictures of 3 channels, and these have 5; give another one"
    )
