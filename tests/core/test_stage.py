"""What the recipes share: the sets are recorded, and what they hold that is not read is said once."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.core.stage import record_sets

Draw = Callable[[Path, Iterable[str]], Path]


def a_run(folder: Path) -> Any:
    """A run that keeps what it is told."""
    said: list[str] = []
    return SimpleNamespace(dir=folder, main=True, said=said, log=said.append, record=lambda **facts: facts)


def test_each_set_is_warned_of_in_one_line(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path / "photos", ["cat/1.png", "dog/2.png", "dog/3.png"])
    (folder / "dog" / "3.png").rename(folder / "dog" / "3.heic")
    (folder / "eel").mkdir()
    (folder / "notes.txt").write_text("")
    Image.new("L", (4, 4)).save(folder / "cat" / "x.gif", save_all=True, append_images=[Image.new("L", (4, 4), 9)])
    plain, run = draw(tmp_path / "plain", ["1.png"]), a_run(tmp_path / "run")
    uri = f"folder:{folder}"
    record_sets(
        run, {"train": open_images(uri), "test": open_images(uri), "other": open_images(f"folder:{plain}")}, "mtime"
    )
    assert run.said == [
        f"WARNING: {uri}: 1 files ending in .heic, which are not read (dog/3.heic); "
        "1 class folders without a picture, so these classes are missing (eel); "
        "1 files of several pages or frames; only the first is read, 1 are not (cat/x.gif)"
    ]


def test_other_processes_are_silent(tmp_path: Path, draw: Draw) -> None:
    run = a_run(tmp_path / "run")
    run.main = False
    (draw(tmp_path / "set", ["1.png"]) / "x.heic").write_bytes(b"")
    record_sets(run, {"train": open_images(f"folder:{tmp_path}/set")}, "mtime")
    assert run.said == []


def test_a_run_in_the_folder_of_its_data_is_refused(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "photos", ["cat/1.png", "dog/2.png"])
    (tmp_path / "link").symlink_to("photos")
    images = open_images(f"folder:{tmp_path}/photos")
    with pytest.raises(UserError, match=r"run\.dir: .*link is itself read as data\.train; choose a folder of its own"):
        record_sets(a_run(tmp_path / "link"), {"train": images}, "mtime")
    record_sets(a_run(tmp_path / "photos" / "runs"), {"train": images}, "mtime")  # passed over from then on
