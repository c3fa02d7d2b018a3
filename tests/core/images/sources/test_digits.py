"""sklearn:digits and digits-m: the formula, the identities and the regions, checked by hand."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.core.images.sources.digits import CUTS, BlendStore, patch_region


def test_digits_are_scikit_learns_scans() -> None:
    images = open_images("sklearn:digits?size=8")
    scans: Any = load_digits()
    assert len(images) == 1797
    assert images.classes == tuple("0123456789")
    assert images.labels is not None
    assert images.labels.tolist() == scans.target.tolist()
    expected = np.floor(scans.images[17] * 255 / 16 + 0.5)
    for channel in images.read(17):
        assert np.array_equal(channel.numpy(), expected)


def test_digits_are_resident_and_equal_to_reading_one_by_one() -> None:
    for uri in ("sklearn:digits#[:20]", "sklearn:digits-m?blends=2#[:10]"):
        images = open_images(uri)
        resident = images.resident()
        assert resident is not None
        assert resident.shape == (20, 3, 32, 32)
        assert resident.dtype == torch.uint8
        assert all(torch.equal(resident[i], images.read(i)) for i in range(20))


@pytest.mark.parametrize("region", ["train", "test", "all"])
def test_a_blend_is_the_absolute_difference_to_a_patch(region: str) -> None:
    """Slow version of |digit - patch|: its own draws and crop, and a loop over pixels."""
    digit, blend, blends, seed = 321, 2, 3, 5
    images = open_images(f"sklearn:digits-m?size=16&region={region}&blends={blends}&patch=40-90&seed={seed}")
    draws = Draws(seed, torch.tensor([digit * blends + blend])).stream("digits-m").stream(region)
    which = int(draws.integers("photograph", 2))
    photograph = load_sample_image(["china.jpg", "flower.jpg"][which])
    side = 40 + int(draws.integers("side", 51))
    cut = [208, 308][which]
    left = cut if region == "train" else 0
    width = {"all": 640, "train": 640 - cut, "test": cut}[region]
    x = left + math.floor(draws.uniform("x").item() * (width - side + 1))
    y = math.floor(draws.uniform("y").item() * (427 - side + 1))
    crop = Image.fromarray(photograph[y : y + side, x : x + side]).resize((16, 16), Image.Resampling.BILINEAR)
    plain = open_images("sklearn:digits?size=16").read(digit)
    blended = images.read(digit * blends + blend)
    for row in range(16):
        for column in range(16):
            for channel in range(3):
                patch = crop.getpixel((column, row))[channel]  # type: ignore[index]
                assert blended[channel, row, column].item() == abs(plain[0, row, column].item() - patch)


def test_patches_of_train_and_test_share_no_pixel() -> None:
    width = load_sample_image("china.jpg").shape[1]
    reach = {}
    for region in ("train", "test"):
        store = BlendStore(8, region, 4, (1, 208), 0)
        boxes = [store.box(i) for i in range(len(store))]
        assert all(box[2] >= 0 and box[4] <= 427 and box[3] - box[1] == box[4] - box[2] for box in boxes)
        for photograph in (0, 1):
            own = [box for box in boxes if box[0] == photograph]
            reach[region, photograph] = min(box[1] for box in own), max(box[3] for box in own)
    for photograph, cut in enumerate(CUTS):
        assert reach["test", photograph] == (0, cut)
        assert reach["train", photograph] == (cut, width)
        assert patch_region("all", photograph)[:2] == (0, width)


def test_a_patch_sees_nothing_outside_its_own_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resizing must not read pixels of the other region: if that is black, no training blend changes."""
    from rootstock.core.images.sources import digits

    images = open_images("sklearn:digits-m?region=train&patch=200-208#[:40]")
    before = images.resident()
    halves = tuple(photograph.copy() for photograph in digits._photographs())
    for photograph, cut in zip(halves, CUTS, strict=True):
        photograph[:, :cut] = 0
    monkeypatch.setattr(digits, "_photographs", lambda: halves)
    after = images.resident()
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)


def test_blends_share_the_identity_of_their_digit_at_any_size() -> None:
    plain = open_images("sklearn:digits").keys()
    assert torch.equal(plain, open_images("sklearn:digits?size=8").keys())
    assert torch.equal(plain, open_images("sklearn:digits-m?region=test&patch=16-20&seed=9").keys())
    blends = open_images("sklearn:digits-m?blends=3&size=12").keys()
    assert torch.equal(blends.view(-1, 3), plain[:, None].expand(-1, 3))


def test_a_digit_and_its_blends_never_straddle_a_split() -> None:
    source = open_images("sklearn:digits#[:60%,seed={seed}]", seed=4)
    target = open_images("sklearn:digits-m?blends=8#[60%:,seed={seed}]", seed=4)
    train = open_images("sklearn:digits-m?region=train#[60%:,seed=4]#[:80%,seed=4]", role="unlabelled")
    test = open_images("sklearn:digits-m?region=test&blends=8#[60%:,seed=4]#[80%:,seed=4]", role="test")
    sets = [set(images.keys().tolist()) for images in (source, target, train, test)]
    assert not sets[0] & sets[1]
    assert not sets[2] & sets[3]
    assert sets[2] | sets[3] == sets[1]
    assert len(target) == 8 * len(sets[1])
    assert len(source) + len(sets[1]) == 1797


def test_seed_and_region_and_blends_change_the_patches_and_the_fingerprint() -> None:
    options = ["seed=0", "seed=1", "region=train", "region=test", "patch=32-33", "size=31"]
    opened = [open_images(f"sklearn:digits-m?{option}") for option in options]
    assert len({images.fingerprint() for images in opened}) == len(options)
    assert len({images.read(5).numpy().tobytes() for images in opened}) == len(options)
    again = open_images("sklearn:digits-m?seed=0")
    assert again.fingerprint() == opened[0].fingerprint()
    assert torch.equal(again.read(5), opened[0].read(5))


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("sklearn:digts", "did you mean digits?"),
        ("sklearn:digits?sise=32", "did you mean size?"),
        ("sklearn:digits?size=big", "not a whole number"),
        ("sklearn:digits?size=0", "1 to 1024"),
        ("sklearn:digits-m?region=left", "known: all, train, test"),
        ("sklearn:digits-m?region=test&patch=32-400", "1 to 208 pixels"),
        ("sklearn:digits-m?patch=90-30", "does not fit"),
        ("sklearn:digits-m?patch=wide", "for example 32-160"),
        ("sklearn:digits-m?blends=0", "1 to 1000"),
        ("sklearn:digits-m?size=32&size=16", "given twice"),
    ],
)
def test_mistakes_are_one_sentence(uri: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        open_images(uri)


def test_blends_are_made_once_and_not_carried_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images("sklearn:digits-m?size=8&blends=2#[:30]")
    expected = [images.read(i) for i in range(len(images))]
    some = images.rows(torch.tensor([5, 0, 5, 17]))
    assert some is not None and some.equal(torch.stack([expected[i] for i in (5, 0, 5, 17)]))
    size = len(pickle.dumps(images))
    assert images.rows(torch.arange(len(images))).equal(torch.stack(expected))  # type: ignore[union-attr]
    assert len(pickle.dumps(images)) == size
    monkeypatch.setattr(type(images._stores[0]), "read", None)  # nothing is left to make
    assert images.rows(torch.tensor([3])).equal(expected[3][None])  # type: ignore[union-attr]
