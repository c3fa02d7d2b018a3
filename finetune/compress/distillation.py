"""Distillation of a classifier (`method.teacher`): a student learns the outputs of a trained network beside the labels, or in their place.

Hinton, Vinyals & Dean 2015 (arXiv:1503.02531, section 2). The teacher sees the very view that the student sees, mixed images too (Beyer et
al. 2022, arXiv:2106.05237), so its outputs are computed in each step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.features import extract
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.sets import LABELLED, align, named_tests, train_and_tests
from ...core.model.backbone import Backbone
from ...core.model.classifier import Classifier
from ...core.model.frozen_teacher import FrozenTeacher, check_channels, teach
from ...core.numerics import wide
from ...core.run.directory import Run
from ...core.run.kept_once import kept_once
from ...core.stage import channels_of

TEACHER_LABELS = "teacher_labels.safetensors"
TAUGHT = "finetune"
"""The entry of `seen` for images that taught without their labels."""
_KEY = "method.teacher.weights"
NAMED_CLASSES = 4  # classes in a message


def teacher_options(
    *,
    weights: str,
    temperature: float = 4.0,
    weight: float = 0.9,
    labels: Literal["given", "teacher"] = "given",
) -> None:
    """Distillation: the loss becomes (1 - weight) L + weight T^2 KL(teacher || student), with both outputs divided by T.

    weights: The teacher: the folder of a finished run of finetune or adapt with the same classes.
    temperature: T, above 0; 1 to 4 is usual.
    weight: Share of the teacher in the loss, above 0 and at most 1. The defaults are those of Tian et al. 2020 (arXiv:1910.10699).
    labels: Whose labels L has: those that are given, or the class that the teacher says of each training image in evaluation's view.
        With the teacher's none need be there, and those that are there are not read: of an adaptation's target, too.
    """


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over rows. student, teacher: logits [N, K].

    T^2 keeps the size of the gradient about the same for every T (section 2.1 of the paper).
    """
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (F.log_softmax(wide(logits) / temperature, dim=1) for logits in (student, teacher))
        return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class Teaching(nn.Module):
    """What a teacher adds to the loss of a student with these classes, all of them the teacher's.

    frozen: the teacher. columns: int64 [K], where each of the student's classes lies among the teacher's outputs.
    """

    columns: Tensor

    def __init__(self, frozen: FrozenTeacher, columns: Sequence[int], temperature: float, weight: float) -> None:
        super().__init__()
        self.frozen, self.temperature, self.weight = frozen, temperature, weight
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64), persistent=False)

    def forward(self, images: Tensor, logits: Tensor, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """images: [N, C, H, W] as the student gets them; logits: its own, [N, K]; loss: L. Returns the whole loss and metrics."""
        with torch.no_grad():
            taught = self.frozen.network(self.frozen.images(images))[:, self.columns]
        distance = soft_cross_entropy(logits, taught, self.temperature)
        agreement = (logits.argmax(1) == taught.argmax(1)).float().mean()
        told = {"distillation": distance.detach(), "teacher_agreement": agreement}
        return (1.0 - self.weight) * loss + self.weight * distance, told


class Teacher(NamedTuple):
    """The run of `method.teacher`."""

    trained: TrainedRun
    classifier: Classifier
    section: Mapping[str, Any]

    @property
    def seen_as(self) -> str:
        """The entry of `seen` for the training images."""
        return TAUGHT if self.section["labels"] == "teacher" else LABELLED

    def sets(self, data: Mapping[str, Any], seed: int) -> tuple[Images, dict[str, Images]]:
        """The training set, without labels where the teacher gives them, and the test sets. Raises UserError."""
        if self.section["labels"] == "given":
            return train_and_tests(data["train"], data["test"], seed)
        if data["test"] is None:
            raise UserError(
                "method.teacher.labels: with the teacher's labels none of the training images' own is read, so no test can be held out of "
                "them; set data.test"
            )
        train = open_images(data["train"], seed=seed, role="unlabelled")
        # The teacher is asked before there is a student to compare it with.
        source = str(self.section["weights"])
        check_channels(self.classifier.backbone, channels_of(train), key=_KEY, source=source)
        tests = {}
        for name, uri in named_tests(data["test"]).items():
            key = "data.test" if isinstance(data["test"], str) else f"data.test.{name}"
            tests[name] = align(open_images(uri, seed=seed, role="test"), self.classifier.classes, key)
        return train, tests

    def labelled(self, run: Run, images: Images) -> Images:
        """The training set with the labels that it is trained on. Called on every process. Raises UserError for other classes."""
        classes = self.classifier.classes
        if self.section["labels"] == "teacher":
            found = copy.copy(images)
            found.labels, found.classes = self._labels(run, images), tuple(classes)
            if len(said := found.labels.unique()) < 2:
                only = classes[int(said[0])]
                run.log(
                    f"WARNING: method.teacher: the teacher says of all {len(images)} training images that they are {only}"
                )
            return found
        assert images.classes is not None
        if odd := sorted(set(images.classes) ^ set(classes)):
            named = ", ".join(odd[:NAMED_CLASSES]) + (", ..." if len(odd) > NAMED_CLASSES else "")
            raise UserError(
                f"{_KEY}: {self.section['weights']} has {len(classes)} classes and data.train {len(images.classes)}, and "
                f"{named} {'is' if len(odd) == 1 else 'are'} not in both; give a teacher of the same classes"
            )
        return images

    def _labels(self, run: Run, images: Images) -> Tensor:
        """The class that the teacher says of each image, int64 [N]; a command that goes on with a run reads what the first one stored."""
        if run.dry:
            return torch.arange(len(images)) % len(self.classifier.classes)

        def asked() -> dict[str, Tensor]:
            place = {"device": run.device, "workers": run.options["workers"]}
            said = extract(self.classifier.to(run.device), images, self.trained.view, **place).argmax(1).cpu()
            return {"labels": said}

        stored = kept_once(run, TEACHER_LABELS, asked, "the teacher is asked again")["labels"]
        if len(stored) != len(images):
            raise UserError(
                f"run.dir: {run.dir} has the teacher's labels of {len(stored)} images, and now there are {len(images)}; choose another "
                "run.dir"
            )
        return stored

    def teaching(self, student: Backbone, classes: Sequence[str]) -> Teaching:
        """For a student with these classes, which inherits what the teacher has seen."""
        source = str(self.section["weights"])
        frozen = teach(student, self.classifier.backbone, self.classifier, key=_KEY, source=source)
        columns = [self.classifier.classes.index(name) for name in classes]
        return Teaching(frozen, columns, self.section["temperature"], self.section["weight"])


def load_teacher(method: Mapping[str, Any], evaluate: Mapping[str, Any]) -> Teacher | None:
    """The teacher that `method.teacher` names; None without one. Raises UserError, also for numbers out of range."""
    section = method["teacher"]
    if section is None:
        return None
    if not section["temperature"] > 0.0:
        raise UserError(
            f"method.teacher.temperature: expected more than 0, got {section['temperature']}; 1 to 4 is usual"
        )
    if not 0.0 < section["weight"] <= 1.0:
        raise UserError(f"method.teacher.weight: expected above 0 and at most 1, got {section['weight']}; 0.9 is usual")
    if section["labels"] == "teacher" and evaluate["held_out"] > 0.0:
        raise UserError(
            "evaluate.held_out: with method.teacher.labels: teacher, held-out images would have the teacher's labels; leave one of both out"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # so a student begins with the weights that it has without a teacher
            trained = load_trained(section["weights"])
    except UserError as error:
        raise UserError(f"{_KEY}: {error}") from error
    return Teacher(trained, teaching_classifier(trained, f"{_KEY}: {section['weights']}"), section)


def teaching_classifier(trained: TrainedRun, named: str) -> Classifier:
    """The classifier of a run, whose outputs a student can learn. named: the run, for messages. Raises UserError."""
    if trained.classifier is None:
        raise UserError(f"{named} has no classifier; give a run of finetune or adapt")
    if trained.classifier.structure.extra:
        raise UserError(
            f"{named} has an output for unknown images, which no student has; teach by features (`rootstock pretrain` with "
            "method=distill), or give a classifier without `unknown`"
        )
    return trained.classifier
