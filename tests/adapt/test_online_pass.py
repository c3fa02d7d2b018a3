"""Which tests an online pass has predicted: those whose very pictures it met, whatever identity they share with others."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.adapt.online_pass import by_test, met_by
from rootstock.adapt.parts.online import OnlinePredictions
from rootstock.adapt.sets import in_content_order
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images
from rootstock.core.views.corrupted import Corruption, corrupted, view_before
from rootstock.core.views.view import Evaluation

BLENDS = "sklearn:digits-m?region=train&blends=4"


def opened(uri: str) -> Images:
    return in_content_order(open_images(uri, role="unlabelled"))


def same_pictures(images: Images, rows: torch.Tensor | None, target: Images) -> bool:
    assert rows is not None
    return all(torch.equal(images.read(i), target.read(row)) for i, row in enumerate(rows.tolist()))


@pytest.mark.parametrize(
    ("target", "test"),
    [
        (f"{BLENDS}#[:40]", "sklearn:digits-m?region=test&blends=4#[:40]"),
        (f"{BLENDS}#[:40]", "sklearn:digits#[:40]"),
        (f"{BLENDS}#[:40]", "sklearn:digits-m?region=train&blends=4&seed=1#[:40]"),
        (f"{BLENDS}#[:40]", f"{BLENDS}#[:80]"),
        ("sklearn:digits?size=16#[:40]", "sklearn:digits?size=32#[:40]"),
        ("sklearn:digits?size=16#[:40]", "sklearn:digits?size=16#[40:60]"),
    ],
)
def test_a_test_of_other_pictures_was_not_met(target: str, test: str) -> None:
    images, there = open_images(test), opened(target)
    assert met_by(images, there) is None
    predictions = OnlinePredictions(len(there), 10)
    predictions.written.fill_(True)
    assert by_test(predictions, there, {"other": images}) == {}


@pytest.mark.parametrize(
    ("target", "test"),
    [
        (f"{BLENDS}#[:40]", f"{BLENDS}#[:40]"),
        (f"{BLENDS}#[:40]", f"{BLENDS}#[:40]#[:30%]"),
        ("sklearn:digits?size=16", "sklearn:digits?size=16#[7:19]"),
        ("sklearn:digits?size=16", "sklearn:digits?size=16&classes=10#[:12]"),
        # Of fewer classes, so the places in the store are others.
        ("sklearn:digits?size=16", "sklearn:digits?size=16&classes=7#[40:60]"),
    ],
)
def test_a_test_of_the_same_pictures_was_met(target: str, test: str) -> None:
    images, there = open_images(test), opened(target)
    rows = met_by(images, there)
    assert rows is not None and len(rows.unique()) == len(images) and same_pictures(images, rows, there)
    predictions = OnlinePredictions(len(there), 10)
    predictions.logits.copy_(torch.randn(len(there), 10, generator=torch.Generator().manual_seed(0)))
    predictions.written.fill_(True)
    assert torch.equal(by_test(predictions, there, {"same": images})["same"], predictions.logits[rows])


def test_files_are_found_wherever_they_lie(tmp_path: Path) -> None:
    """In their folder, in a copy of other names, in an archive, and twice; not where one picture has changed."""
    digits = open_images("sklearn:digits?size=16#[:12]")
    for i in range(len(digits)):
        path = tmp_path / "a" / "x" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.read(i).permute(1, 2, 0).numpy()).save(path)
    shutil.copy(tmp_path / "a" / "x" / "3.png", tmp_path / "a" / "x" / "again.png")
    shutil.copytree(tmp_path / "a" / "x", tmp_path / "b" / "y" / "z")
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(tmp_path / "a", arcname="other")
    target = opened(f"folder:{tmp_path / 'a'}")
    for uri in (f"folder:{tmp_path / 'a'}", f"folder:{tmp_path / 'b'}", f"tar:{tmp_path / 'c.tar'}"):
        images = open_images(uri)
        rows = met_by(images, target)
        assert rows is not None and len(rows.unique()) == len(images) == 13 and same_pictures(images, rows, target)
    Image.new("RGB", (16, 16)).save(tmp_path / "b" / "y" / "z" / "5.png")
    assert met_by(open_images(f"folder:{tmp_path / 'b'}"), target) is None


def test_corrupted_pictures_are_others() -> None:
    plain, view = open_images("sklearn:digits?size=16#[:10]"), Evaluation(16)
    changed = [corrupted(plain, Corruption("gaussian_noise", severity, "cifar"), view) for severity in (1, 1, 3)]
    assert met_by(changed[0], changed[1]) is not None
    assert met_by(changed[0], changed[2]) is None and met_by(plain, changed[0]) is None


def test_pictures_are_corrupted_at_a_size_that_is_named(tmp_path: Path) -> None:
    """Those of 32 px that a network sees at 96: the corrupted ones of 32, enlarged as the clean ones are."""
    folder = tmp_path / "x"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i}.png")
    plain, seen = open_images(f"folder:{tmp_path}"), Evaluation(96, interpolation="bicubic")
    for name in ("gaussian_noise", "clutter"):
        corruption = Corruption(name, 3, "cifar")
        small = corrupted(plain, corruption, Evaluation(32))
        named = corrupted(plain, corruption, view_before(32, seen))
        large = corrupted(plain, corruption, view_before(None, seen))
        for i in range(6):
            assert torch.equal(named.read(i), small.read(i)) and named.read(i).shape == (3, 32, 32)
            assert torch.equal(seen.worker(named.read(i)), seen.worker(small.read(i)))
            assert large.read(i).shape == (3, 96, 96) and not torch.equal(large.read(i), seen.worker(named.read(i)))
    cut = Evaluation(96, crop=0.75)
    assert view_before(96, cut) is cut  # a size that is data.size changes nothing
