"""The slice that choices are made on keeps all images of an identity on one side, and copies of all images change no choice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rootstock.core.evaluate.held_out import describe_slice, distinct_rows, held_out_rows
from rootstock.core.images.open import open_images
from rootstock.core.images.split import keys_by_class


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def drawn_keys(n: int, seed: int = 0) -> Tensor:
    return torch.randint(-(2**62), 2**62, (n,), generator=torch.Generator().manual_seed(seed))


def test_a_fifth_of_the_identities_of_each_class() -> None:
    y = torch.tensor([0] * 50 + [1] * 20 + [2] * 3 + [3] * 2 + [4])
    keys = drawn_keys(len(y))
    held_out = held_out_rows(keys, y, seed=0)
    assert torch.bincount(y[held_out], minlength=5).tolist() == [10, 4, 1, 1, 0]
    assert torch.equal(held_out_rows(keys, y, seed=0), held_out)
    assert not torch.equal(held_out_rows(keys, y, seed=1), held_out)
    # Every image is held out by some seed: no place is preferred.
    ever = torch.stack([held_out_rows(keys, y, seed=s) for s in range(60)]).any(dim=0)
    assert ever[:-1].all() and not ever[-1]


@pytest.mark.parametrize("n", [2, 3, 10])
def test_copies_and_order_change_no_side(n: int) -> None:
    keys, y = drawn_keys(60), torch.arange(60) % 4
    sides = dict(zip(keys.tolist(), held_out_rows(keys, y, seed=3).tolist(), strict=True))
    rows = torch.randperm(60 * n, generator=torch.Generator().manual_seed(n)) % 60
    # Some images have more copies than others.
    rows = torch.cat([rows, rows[: 7 * n]])
    assert held_out_rows(keys[rows], y[rows], seed=3).tolist() == [sides[key] for key in keys[rows].tolist()]


def test_the_class_of_an_identity_is_that_of_most_images_then_the_smallest() -> None:
    keys = torch.tensor([5, 5, 5, 9, 9, -1, -1, -1, -1])
    y = torch.tensor([2, 0, 2, 7, 2, 3, 1, 1, 3])
    assert {label: own.tolist() for label, own in keys_by_class(keys, y).items()} == {1: [-1], 2: [5, 9]}
    assert keys_by_class(keys[:0], y[:0]) == {}


def test_digits_m_has_no_sibling_of_a_held_out_image_in_the_fitted_part() -> None:
    images = open_images("sklearn:digits-m?region=train&blends=4&size=8#train[seed=0]")
    assert images.labels is not None
    keys, held_out = images.keys(), held_out_rows(images.keys(), images.labels, seed=0)
    assert not torch.isin(keys[held_out], keys[~held_out]).any()
    told = describe_slice(images, 0)
    assert (
        (told["images"], told["of_images"])
        == (int(held_out.sum()), len(images))
        == (4 * told["keys"], 4 * told["of_keys"])
    )
    assert told["keys"] == pytest.approx(told["of_keys"] / 5, abs=5) and told["fraction"] == 0.2 and told["seed"] == 0
    assert told["split"] == images.select(held_out.nonzero()[:, 0]).split_hash()


def test_copies_are_left_out_and_blends_stay(tmp_path: Path) -> None:
    """Copies are of one content, label and identity; a folder's, an array's, and one of each."""
    rows = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    for name, k in (("a/1", 0), ("a/2", 1), ("b/1", 2), ("b/2", 1), ("b/3", 2), ("b/4", 2)):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rows[k]).save(tmp_path / "set" / f"{name}.png")
    folder = open_images(f"folder:{tmp_path / 'set'}")
    # The picture of a/2 has another label as b/2, so both stay.
    assert [folder.name(i) for i in distinct_rows(folder).tolist()] == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    np.savez(tmp_path / "x.npz", x=rows[[3, 0, 3, 4, 0, 0]], y=np.array([0, 0, 0, 1, 0, 1]))
    assert distinct_rows(open_images(f"npz:{tmp_path / 'x.npz'}?layout=NHWC")).tolist() == [0, 1, 3, 5]
    blends = open_images("sklearn:digits-m?blends=3&size=8#[:2%]")
    assert len(distinct_rows(blends)) == len(blends)
    assert distinct_rows(blends.select(torch.tensor([4, 0, 4, 1]))).tolist() == [0, 1, 3]
    assert distinct_rows(blends.select(torch.arange(0))).tolist() == []
