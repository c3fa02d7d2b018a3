"""A teacher stands beside its student: no state but a digest, no mode, no gradient; and its images are normalised anew."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.frozen_teacher import FrozenTeacher, inherit, teach
from rootstock.core.model.heads import Structure
from rootstock.core.model.identity import network_digest

GREY, HALF = ((0.2, 0.3, 0.4), (0.1, 0.2, 0.3)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Holder(nn.Module):
    def __init__(self, network: Backbone, size: int | None = None) -> None:
        super().__init__()
        self.student = nn.Linear(2, 2)
        self.teacher = FrozenTeacher(network, GREY, HALF, size, key="method.teacher", source="runs/big")


def network(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return create(16, name="smallconv", args={"widths": [4, 4, 6, 8]})


def test_it_is_no_part_of_what_is_trained_or_saved() -> None:
    whole = Holder(network())
    assert set(whole.state_dict()) == {"student.weight", "student.bias", "teacher.digest"}
    assert len(list(whole.parameters())) == 2
    taught = whole.teacher.network
    whole.train().double()
    assert not taught.training and all(not p.requires_grad for p in taught.parameters())
    assert next(taught.parameters()).dtype is torch.float64  # it follows to where its student goes
    assert whole.teacher.digest.dtype is torch.int64


def test_images_are_as_the_teacher_takes_them() -> None:
    pixels = torch.rand(3, 3, 16, 16, dtype=torch.float64)

    def normal(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)

    teacher = Holder(network()).double().teacher
    torch.testing.assert_close(teacher.images(normal(pixels, *GREY)), normal(pixels, *HALF), rtol=1e-5, atol=1e-6)
    larger = Holder(network(), size=24).teacher
    shown = larger.images(normal(pixels, *GREY).float())
    assert shown.shape == (3, 3, 24, 24) and abs(float(shown.mean()) - float(normal(pixels, *HALF).mean())) < 0.02


def test_a_run_goes_on_only_with_the_same_teacher() -> None:
    saved = Holder(network()).state_dict()
    Holder(network()).load_state_dict(saved)
    with pytest.raises(UserError) as refused:
        Holder(network(seed=1)).load_state_dict(saved)
    assert str(refused.value) == (
        "method.teacher: runs/big is another network than the one that this run began with; restore it, or choose another run.dir"
    )


def vit(seed: int = 0, **given: Any) -> Backbone:
    torch.manual_seed(seed)
    sides = {"patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    return create(16, name="vit_tiny_patch16_224", **{"args": sides, "pooling": "token", **given})


def test_equal_weights_that_compute_something_else_are_another_teacher() -> None:
    """Pooling, an argument without weights, and the normalisation; of a classifier its structure."""
    sides = {"patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    others = [
        vit(),
        vit(pooling="mean"),
        vit(args={**sides, "act_layer": "relu"}),
        vit(mean=(0.1, 0.2, 0.3)),
        vit(std=(0.1, 0.2, 0.3)),
    ]
    for other in others[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others[0].parameters(), other.parameters(), strict=True))
    assert len({network_digest(one) for one in others}) == len(others) and network_digest(vit()) == network_digest(
        others[0]
    )
    with pytest.raises(
        UserError, match=r"^method\.teacher: runs/big is another network than the one that this run began"
    ):
        Holder(others[1]).load_state_dict(Holder(others[0]).state_dict())
    torch.manual_seed(0)
    heads = [Classifier(vit(), ["a", "b"], structure=Structure(head="cosine", temperature=t)) for t in (0.05, 0.5)]
    heads[1].load_state_dict(heads[0].state_dict())
    assert network_digest(heads[0]) != network_digest(heads[1])


def test_the_student_inherits_what_its_teacher_saw(tmp_path: Path) -> None:
    student, teacher = network(), network(1)
    student.seen = {"pretrain": torch.tensor([1, 2])}
    teacher.seen = {"pretrain": torch.tensor([2, 3]), "labelled": torch.tensor([7])}
    teacher.provenance = [{"task": "finetune", "selection": "oracle"}]
    inherit(student, teacher, "runs/big", "abc")
    assert student.seen["pretrain"].tolist() == [1, 2, 3] and student.seen["labelled"].tolist() == [7]
    assert student.provenance == [
        {"teacher": "runs/big", "teacher_digest": "abc", "task": "finetune", "selection": "oracle"}
    ]
    assert student.selection("last") == "oracle"
    inherit(student, network(2), "timm:x", "def")
    assert student.provenance[-1] == {
        "teacher": "timm:x",
        "teacher_digest": "def",
        "task": "external",
        "weights": "timm:x",
    }
    student.export(tmp_path)
    assert create(16, weights=str(tmp_path)).provenance == student.provenance


def test_a_teacher_is_made_for_its_student_and_sees_its_pictures() -> None:
    student, teacher = network(), create(24, name="smallconv", args={"widths": [4, 4, 6, 8]}, mean=(0.1, 0.2, 0.3))
    frozen = teach(student, teacher, teacher, key="method.teacher", source="runs/big")
    assert frozen.network is teacher and frozen.size == 24 and not frozen.same
    assert student.provenance[-1]["teacher"] == "runs/big"
    grey = create(16, 1, name="smallconv")
    with pytest.raises(UserError) as refused:
        teach(student, grey, grey, key="method.teacher.weights", source="runs/grey")
    assert str(refused.value) == (
        "method.teacher.weights: runs/grey takes pictures of 1 channels, and these have 3; give another one"
    )
