"""A teacher: the student's weights, none of its noise, and the average that the formula says."""

import torch
from timm.layers.drop import DropPath
from torch import nn

from rootstock.core.model.backbone import create
from rootstock.core.model.ema import follow, move_together, teacher_of

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def test_a_teacher_starts_as_the_student_without_gradients() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = teacher_of(student)
    assert all(not p.requires_grad for p in teacher.parameters()) and all(p.requires_grad for p in student.parameters())
    for (name, own), other in zip(teacher.state_dict().items(), student.state_dict().values(), strict=True):
        assert own.equal(other) and own.data_ptr() != other.data_ptr(), name


def test_a_teacher_has_no_noise_in_training_mode() -> None:
    torch.manual_seed(0)
    args = {**VIT, "drop_path_rate": 0.5, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "pos_drop_rate": 0.3}
    student = create(16, name="vit_tiny_patch16_224", args={**args, "patch_drop_rate": 0.3}).train()
    teacher = teacher_of(student)
    images = torch.randn(4, 3, 16, 16)
    assert teacher.training and not student(images).equal(student(images))
    assert teacher(images).equal(teacher(images))
    torch.testing.assert_close(teacher(images), student.eval()(images))
    assert any(isinstance(m, DropPath) and m.drop_prob for m in student.modules())  # the student keeps its own


def test_following_is_the_exponential_moving_average() -> None:
    torch.manual_seed(0)
    student = nn.Linear(3, 2).double()
    teacher = teacher_of(student)
    slow = [p.clone() for p in teacher.parameters()]
    for momentum in (0.9, 0.99, 0.5):
        with torch.no_grad():
            for p in student.parameters():
                p += torch.randn_like(p)
        follow(teacher, student, momentum)
        slow = [momentum * a + (1 - momentum) * b for a, b in zip(slow, student.parameters(), strict=True)]
        for a, b in zip(teacher.parameters(), slow, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-14)
    before = [p.clone() for p in teacher.parameters()]
    follow(teacher, student, 1.0)
    assert all(a.equal(b) for a, b in zip(teacher.parameters(), before, strict=True))
    follow(teacher, student, 0.0)
    assert all(a.equal(b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))


def test_many_tensors_move_as_one_does() -> None:
    """As a GPU moves them; and not a bit of them where the share is 0, as after a skipped step."""
    torch.manual_seed(0)
    slow, fast = ([torch.randn(shape) for shape in ((3, 4), (5,), ())] for _ in range(2))
    expected = [mine.lerp(other, 0.004) for mine, other in zip(slow, fast, strict=True)]
    kept = [mine.clone() for mine in slow]
    move_together(slow, fast, torch.tensor(0.0))
    assert all(mine.equal(before) for mine, before in zip(slow, kept, strict=True))
    move_together(slow, fast, torch.tensor(0.004))
    torch.testing.assert_close(slow, expected)
