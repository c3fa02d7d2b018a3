"""One pass over a set finds sizes, damage and keys; it is not repeated while no file changes."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image

from rootstock.core.images import cache, survey
from rootstock.core.images.open import open_images
from rootstock.core.images.sources.files import FileStore

Draw = Callable[[Path, Iterable[str]], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A separate cache that accepts files written a moment ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SETTLED_SECONDS", -1.0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of each file that is read."""
    names: list[str] = []
    real = FileStore.content
    monkeypatch.setattr(FileStore, "content", lambda store, i: (names.append(store.names[i]), real(store, i))[1])
    return names


def test_every_file_is_read_once_and_not_again(tmp_path: Path, draw: Draw, reads: list[str]) -> None:
    names = [f"{c}/{i}.png" for c in "ab" for i in range(5)]
    folder = draw(tmp_path / "set", names)
    (folder / "a" / "3.png").write_bytes(b"no picture")
    images = open_images(f"folder:{folder}")
    found = survey.survey(images)
    assert sorted(reads) == names
    expected = open_images(f"folder:{folder}#all")
    assert images.keys().equal(expected.keys())
    assert len(reads) == 10  # the keys are cached too
    assert found.shapes == Counter(tuple(images.read(i).shape) for i in range(10) if i != 3)
    assert [i for i, _ in found.damaged] == [3]
    del reads[:]
    again = survey.survey(open_images(f"folder:{folder}"))
    assert (reads, again) == ([], found._replace(remembered=True))
    assert survey.survey(open_images(f"folder:{folder}"), anew=True) == found
    assert len(reads) == 10


def test_a_changed_file_a_part_and_a_union_are_looked_at_anew(tmp_path: Path, draw: Draw) -> None:
    folder, other = draw(tmp_path / "set", ["1.png", "2.png", "3.png"]), draw(tmp_path / "other", ["4.png"])
    uri = f"folder:{folder}"
    survey.survey(open_images(uri))
    part = open_images(uri).select(torch.tensor([2, 0]))
    assert survey.survey(part).shapes.total() == 2
    both = survey.survey(open_images([uri, f"folder:{other}"]))
    assert (both.shapes.total(), both.remembered) == (4, False)
    mixed = open_images([uri, f"folder:{other}"]).select(torch.tensor([3, 0, 1, 2]))
    survey.survey(mixed)  # of all files, but in another order: the keys stay those of their files
    assert mixed.keys().tolist() == open_images([uri, f"folder:{other}"]).keys()[[3, 0, 1, 2]].tolist()
    status = (folder / "2.png").stat()
    content = bytearray((folder / "2.png").read_bytes())
    content[20] ^= 255
    (folder / "2.png").write_bytes(content)
    os.utime(folder / "2.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = survey.survey(open_images(uri))
    assert (changed.remembered, [i for i, _ in changed.damaged]) == (False, [1])


def test_a_file_that_cannot_be_read_is_tried_again(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw(tmp_path / "set", ["1.png", "2.png"])

    def content(store: FileStore, i: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(FileStore, "content", content)
        images = open_images(f"folder:{folder}")
        assert len(survey.survey(images).damaged) == 2
    assert images.unreadable() == [0, 1]
    images = open_images(f"folder:{folder}")
    assert survey.survey(images) == (Counter(tuple(images.read(i).shape) for i in range(2)), [], survey.Tally(), False)
    assert images.unreadable() == []


def test_other_sources_are_looked_at_too() -> None:
    found = survey.survey(open_images("sklearn:digits#[:5]"))
    assert (found.shapes.total(), found.damaged, found.remembered) == (5, [], False)


def test_progress_is_told_in_steps(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "CHUNK", 2)
    monkeypatch.setattr(survey, "GROUP", 4)
    images, told = open_images(f"folder:{draw(tmp_path / 'set', [f'{i}.png' for i in range(7)])}"), []
    survey.survey(images, lambda numbers, count: (told.append((number, count)) or number for number in numbers))
    assert told == [(2, 7), (4, 7), (6, 7), (7, 7)]


def test_large_files_have_more_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey.os, "cpu_count", lambda: 6)
    Image.new("L", (2, 2)).save(tmp_path / "a.bmp")
    assert survey.readers_for(open_images(f"folder:{tmp_path}").stores) == 2
    Image.new("L", (300, 300)).save(tmp_path / "a.bmp")
    assert survey.readers_for(open_images(f"folder:{tmp_path}").stores) == 6
