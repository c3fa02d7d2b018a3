"""A picture changed in place is noticed, as far as data.stamp says; a run of an earlier version is compared as that one did."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.core.images.sets import watch_sets
from rootstock.core.run.directory import Run


def draw_at(path: Path, seed: int, at: int) -> None:
    """A BMP, so that every picture has the same size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    os.utime(path, ns=(at, at))


@pytest.mark.parametrize(
    ("stamp", "touched", "redrawn", "in_secret"),
    [("size", False, False, False), ("mtime", True, True, False), ("content", False, True, True)],
)
def test_each_stamp_sees_what_it_says(
    tmp_path: Path, opened: Callable[..., Run], stamp: str, touched: bool, redrawn: bool, in_secret: bool
) -> None:
    """A file that is touched, one drawn anew, and one drawn anew with the old time of change."""
    data = tmp_path / "data"
    for k in range(4):
        draw_at(data / f"{k}.bmp", k, 1000)

    def record(name: str) -> None:
        run = opened(name)
        run.record(**watch_sets({"train": open_images(f"folder:{data}")}, stamp))  # pyright: ignore[reportArgumentType]
        run.metrics({"step": 1})  # a run that left nothing begins anew
        run.close()

    for name, seed, at, seen in (("a", 1, 2000, touched), ("b", 9, 3000, redrawn), ("c", 10, 3000, in_secret)):
        record(name)
        record(name)
        draw_at(data / "1.bmp", seed, at)
        if seen:
            with pytest.raises(
                UserError, match=f"data.train changed since .*data.stamp is {stamp}.*changed_data=accept"
            ):
                record(name)
        else:
            record(name)


def test_an_earlier_version_watched_sizes_alone(tmp_path: Path, opened: Callable[..., Run]) -> None:
    data = tmp_path / "data"
    draw_at(data / "0.bmp", 0, 1000)
    now = watch_sets({"train": open_images(f"folder:{data}")}, "mtime")
    run = opened()
    run.record(data=now["data"])
    assert "watched" not in run.recorded
    draw_at(data / "0.bmp", 0, 5000)
    later = watch_sets({"train": open_images(f"folder:{data}")}, "mtime")
    assert later["data"] == now["data"] and later["watched"] != now["watched"]
    run.record(**later)
    assert run.recorded["watched"]["stamp"] == "mtime"
