"""A cache gives what the teacher gave, for the same pixels alone; what was cut off or damaged is computed anew."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.ssl.parts.teacher_cache import TeacherCache, read_or_ask, row_digests

SHAPES = [(3,), (4, 2)]


class Asked:
    """A teacher that counts the images that it is asked for."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: Tensor) -> list[Tensor]:
        self.images += len(images)
        pooled = images.mean((2, 3))
        return [pooled, (pooled.sum(1)[:, None, None] * torch.arange(8.0).view(4, 2)).sin()]


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    first, again = torch.randn(5, 3, 4, 4), torch.randn(2, 3, 4, 4)
    teacher = Asked()
    cache = TeacherCache(str(tmp_path), "a", SHAPES)
    given = read_or_ask(cache, first, teacher)
    assert teacher.images == 5
    for there, here in zip(read_or_ask(cache, first, teacher), given, strict=True):
        assert torch.equal(there, here)
    assert teacher.images == 5
    other = TeacherCache(str(tmp_path), "a", SHAPES)
    assert len(other) == 5
    for there, here in zip(other(first.flip(0), teacher), given, strict=True):
        assert torch.equal(there, here.flip(0))
    assert teacher.images == 5
    # A batch with a view that is missing is computed as a whole, and the missing one is kept.
    other(torch.cat([first[:3], again[:1]]), teacher)
    assert teacher.images == 9 and len(TeacherCache(str(tmp_path), "a", SHAPES)) == 6
    assert len(TeacherCache(str(tmp_path), "b", SHAPES)) == 0


def test_one_pixel_makes_another_view(tmp_path: Path) -> None:
    images, teacher = torch.randn(2, 3, 4, 4), Asked()
    cache = TeacherCache(str(tmp_path), "a", SHAPES)
    cache(images, teacher)
    changed = images.clone()
    changed[1, 2, 3, 3] += 1e-6
    cache(changed, teacher)
    assert teacher.images == 4 and len(cache) == 3


def test_half_precision_is_kept_apart(tmp_path: Path) -> None:
    images, teacher = torch.randn(2, 3, 4, 4), Asked()
    cache = TeacherCache(str(tmp_path), "a", SHAPES)
    cache(images, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        cache(images, teacher)
    assert teacher.images == 4


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_record_is_missing(tmp_path: Path, damage: str) -> None:
    images, teacher = torch.randn(3, 3, 4, 4), Asked()
    right = TeacherCache(str(tmp_path), "a", SHAPES)(images, teacher)
    (file,) = (tmp_path / "a").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[:-5]
    else:
        content[-3] ^= 1
    file.write_bytes(content)
    found = TeacherCache(str(tmp_path), "a", SHAPES)(images, teacher)
    assert teacher.images == 6 and all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
    TeacherCache(str(tmp_path), "a", SHAPES)(images, teacher)
    assert teacher.images == 6


def test_rows_have_numbers_of_their_own() -> None:
    rows = torch.randn(200, 6)
    rows[1] = rows[0].flip(0)
    rows[2] = -rows[0]
    rows[3] = 0.0
    found = row_digests(rows)
    assert found.dtype is torch.int64 and len(found.unique()) == 200
    assert torch.equal(row_digests(rows.view(200, 2, 3)), found) and torch.equal(row_digests(rows[5:6]), found[5:6])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match=r"^method\.cache: .*file/a cannot be made \(.*file is no folder\); name another folder, or leave cache out$",
    ):
        TeacherCache(str(tmp_path / "file"), "a", SHAPES)


def test_the_folder_is_made_with_the_first_record(tmp_path: Path) -> None:
    cache = TeacherCache(str(tmp_path / "far" / "below"), "a", SHAPES)
    assert len(cache) == 0 and not list(tmp_path.iterdir())
    cache(torch.randn(2, 3, 4, 4), Asked())
    assert len(TeacherCache(str(tmp_path / "far" / "below"), "a", SHAPES)) == 2
