"""Decoded pictures stay in memory: the same batches, each picture decoded once, as many as have room, and no damaged one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core import hostmemory
from rootstock.core.images.damage import Damage
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images
from rootstock.core.stream import decoded
from rootstock.core.stream.batches import stream
from rootstock.core.stream.decoded import DecodedPictures, room_for_decoded
from rootstock.core.stream.order import Order
from rootstock.tests.core.stream.test_batches import CROP

COUNT, BATCH, STEPS, BYTES = 12, 4, 9, 3 * 10 * 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for n in range(COUNT):
        picture = Image.fromarray(random.integers(0, 256, (10, 8, 3), dtype=np.uint8))
        picture.save(tmp_path / f"{n:02}.{'png' if n % 2 else 'jpg'}")
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each picture is decoded in this process."""
    found, straight = Counter[int](), Images.read

    def counted(self: Images, i: int) -> torch.Tensor:
        found[i] += 1
        return straight(self, i)

    monkeypatch.setattr(Images, "read", counted)
    return found


def batches(folder: Path, cache: int, workers: int = 0, damage: Damage | None = None) -> list[dict[str, torch.Tensor]]:
    images = open_images(f"folder:{folder}")
    steps = stream(
        images, Order(len(images), BATCH, 0), CROP, steps=STEPS, device=torch.device("cpu"), workers=workers, damage=damage,
        decoded_cache=cache,
    )  # fmt: skip
    return [{"images": one.images, "positions": one.positions, "index": one.index} for (one,) in steps(0)]


def same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return len(a) == len(b) == STEPS and all(torch.equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_each_picture_is_decoded_once_and_the_batches_are_the_same(folder: Path, reads: Counter[int]) -> None:
    plain = batches(folder, 0)
    assert reads.total() == STEPS * BATCH and max(reads.values()) == STEPS * BATCH // COUNT
    reads.clear()
    assert same(batches(folder, 10**6), plain)
    assert reads == dict.fromkeys(range(COUNT), 1)


def test_as_many_stay_as_have_room(folder: Path, reads: Counter[int]) -> None:
    plain = batches(folder, 0)
    reads.clear()
    assert same(batches(folder, 5 * BYTES + 1), plain)
    assert sorted(reads.values()) == [1] * 5 + [STEPS * BATCH // COUNT] * (COUNT - 5)


@pytest.mark.parametrize("cache", [10**6, 4 * BYTES])
def test_workers_keep_theirs(folder: Path, cache: int) -> None:
    assert same(batches(folder, cache, workers=2), batches(folder, 0))


def test_a_damaged_picture_is_noted_each_time_and_never_kept(folder: Path, reads: Counter[int]) -> None:
    (folder / "05.png").write_bytes(b"no picture")
    said: list[str] = []
    plain = batches(folder, 0, damage=Damage(0.5, report=said.append))
    reads.clear()
    assert same(batches(folder, 10**6, damage=Damage(0.5, report=said.append)), plain)
    assert reads[5] == STEPS * BATCH // COUNT and all(
        reads[n] == 1 for n in range(COUNT) if n not in (5, 6)
    )  # 6 stands in for 5
    assert len(said) == 2 and "05.png" in said[1]


def test_what_is_kept_is_what_was_decoded(folder: Path) -> None:
    images = open_images(f"folder:{folder}")
    kept = DecodedPictures(images, 10**6)
    first = [kept.read(n)[0].clone() for n in range(COUNT)]
    list(stream(images, Order(COUNT, BATCH, 0), CROP, steps=STEPS, device=torch.device("cpu"), decoded_cache=10**6)(0))
    assert all(torch.equal(kept.read(n)[0], before) for n, before in enumerate(first))
    assert all(torch.equal(images.read(n), before) for n, before in enumerate(first))
    assert kept.room == 10**6 - COUNT * BYTES


def test_the_room_is_shared_and_never_most_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "available", lambda: 4000)
    assert [room_for_decoded(800, loading) for loading in (0, 1, 4)] == [800, 800, 200]
    assert room_for_decoded(8000, 4) == 250
    monkeypatch.setattr(decoded, "available", lambda: None)
    assert room_for_decoded(8000, 4) == 2000
    monkeypatch.undo()
    assert hostmemory.available() is None or room_for_decoded(10**18, 1) < 10**18
