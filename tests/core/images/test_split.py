"""Splits depend only on content and seed, don't overlap, and never separate copies of one image."""

import hashlib
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import holdout, open_images
from rootstock.core.images.priors import with_drawn_priors, with_long_tail
from rootstock.core.images.split import cut, hash_order, one_of_each, parse_fragment


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def drawn(folder: Path, names: list[str]) -> Path:
    """A folder of small pictures, each different."""
    for k, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return folder


def hashes(images: Images) -> set[int]:
    return set(images.keys().tolist())


def npz(path: Path, labels: list[int], copies: int = 1) -> str:
    """An .npz of len(labels) images, each `copies` times."""
    rows = [np.random.default_rng(i // copies).integers(0, 256, (4, 4), dtype=np.uint8) for i in range(len(labels))]
    np.savez(path, x=np.stack(rows), y=np.array(labels))
    return f"npz:{path}"


def test_moving_files_between_class_folders_changes_no_split(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "set", [f"{c}/{i}.png" for c in "abc" for i in range(12)])
    uris = [f"folder:{folder}#{part}" for part in ("train", "test", "[:30%,seed=3]", "[10:20,seed=1]")]
    before = [open_images(uri, role="unlabelled") for uri in uris]
    kept = [part.split_hash() for part in holdout(open_images(f"folder:{folder}"), seed=5, stratify=False)]
    before_hashes = [(hashes(images), images.split_hash()) for images in before]
    files = sorted(folder.rglob("*.png"))
    shuffled = random.Random(0).sample(range(len(files)), len(files))
    for k, file in zip(shuffled, files, strict=True):
        file.rename(folder / "abc"[k % 3] / f"moved{k}.png")
    after = [open_images(uri, role="unlabelled") for uri in uris]
    assert [(hashes(images), images.split_hash()) for images in after] == before_hashes
    assert [p.split_hash() for p in holdout(open_images(f"folder:{folder}"), seed=5, stratify=False)] == kept


def test_shuffling_labels_changes_no_unstratified_split(tmp_path: Path) -> None:
    labels = [i % 4 for i in range(60)]
    shuffled = random.Random(1).sample(labels, len(labels))
    uris = npz(tmp_path / "a.npz", labels), npz(tmp_path / "b.npz", shuffled)
    for part in ("#[:70%,seed=2]", "#[70%:,seed=2]", "#test", "#train#[20%:60%,seed=1]"):
        first, second = (open_images(uri + part, role="test") for uri in uris)
        assert torch.equal(first.keys(), second.keys())
    for first, second in zip(*(holdout(open_images(uri), seed=0, stratify=False) for uri in uris), strict=True):
        assert torch.equal(first.keys(), second.keys())


def test_copies_never_straddle(tmp_path: Path) -> None:
    uri = npz(tmp_path / "copies.npz", [i % 3 for i in range(120)], copies=4)
    for seed in range(5):
        low = open_images(f"{uri}#[:37%,seed={seed}]")
        high = open_images(f"{uri}#[37%:,seed={seed}]")
        assert not hashes(low) & hashes(high)
        assert len(low) + len(high) == 120
        assert set(Counter(low.keys().tolist()).values()) == {4}
        # each image has several labels here; even a stratified cut must keep its copies together
        kept, held = holdout(open_images(uri), seed=seed, stratify=True)
        assert not hashes(kept) & hashes(held)
        assert len(kept) + len(held) == 120


def test_slices_that_meet_are_a_partition() -> None:
    keys = torch.randint(-(2**62), 2**62, (97,), generator=torch.Generator().manual_seed(0))
    for bounds in (["33%"], ["12.5%", "60%"], ["10", "50%", "90"]):
        edges = [None, *bounds, None]
        parts = [cut(keys, low, high, 7) for low, high in pairwise(edges)]
        assert sorted(torch.cat(parts).tolist()) == list(range(97))


def test_the_order_is_sha256_of_seed_and_identity(tmp_path: Path) -> None:
    """Slow version: identities from the arrays' bytes, the order from a string of seed and identity."""
    labels = [0] * 25
    uri = npz(tmp_path / "x.npz", labels)
    pixels = np.load(tmp_path / "x.npz")["x"]
    identity = [hashlib.sha256(row.tobytes()).digest()[:8] for row in pixels]
    order = sorted(range(25), key=lambda i: hashlib.sha256(b"9/" + identity[i]).hexdigest())
    images = open_images(f"{uri}#[20%:60%,seed=9]")
    assert images.keys().tolist() == [int.from_bytes(identity[i], "big", signed=True) for i in sorted(order[5:15])]
    joined = b"".join(sorted(identity, key=lambda key: int.from_bytes(key, "big", signed=True)))
    assert open_images(uri).split_hash() == hashlib.sha256(joined).hexdigest()


def test_stratify_cuts_each_class_alike(tmp_path: Path) -> None:
    uri = npz(tmp_path / "x.npz", [0] * 50 + [1] * 30 + [2] * 20)
    images = open_images(f"{uri}#[:80%,seed=1,stratify]")
    assert images.labels is not None
    assert images.labels.bincount().tolist() == [40, 24, 16]
    kept, held = holdout(open_images(uri), fraction=0.1, seed=1, stratify=True)
    assert held.labels is not None
    assert held.labels.bincount().tolist() == [5, 3, 2]
    assert not hashes(kept) & hashes(held)


def test_seed_in_a_uri_and_default_splits(tmp_path: Path) -> None:
    uri = npz(tmp_path / "x.npz", [0] * 40)
    assert hashes(open_images(f"{uri}#[:50%,seed={{seed}}]", seed=6)) == hashes(open_images(f"{uri}#[:50%,seed=6]"))
    assert hashes(open_images(f"{uri}#[:50%,seed=6]")) != hashes(open_images(f"{uri}#[:50%,seed=7]"))
    train, test = open_images(f"{uri}#train"), open_images(f"{uri}#test")
    assert (len(train), len(test)) == (32, 8)
    assert not hashes(train) & hashes(test)
    assert hashes(open_images(f"{uri}#test[seed=3]")) == hashes(open_images(f"{uri}#[80%:,seed=3]"))
    assert len(open_images(f"{uri}#all[:5]")) == 5


def test_natural_splits_are_named_never_guessed(tmp_path: Path) -> None:
    folder = drawn(tmp_path, [f"set/{s}/{c}/{i}.png" for s in ("train", "val") for c in "ab" for i in range(5)])
    train, val, everything = (open_images(f"folder:{folder}#{name}") for name in ("train", "val", "all"))
    assert (len(train), len(val), len(everything)) == (10, 10, 20)
    assert train.classes == ("a", "b")
    assert train.name(0) == "train/a/0.png"
    assert len(open_images(f"folder:{folder}#train[:40%,seed=1]")) == 4
    with pytest.raises(UserError, match=r"comes in splits \(train, val\): say which, as in .*#train"):
        open_images(f"folder:{folder}")
    with pytest.raises(UserError, match=r"no split test \(it has: train, val, all\)"):
        open_images(f"folder:{folder}#test")
    with pytest.raises(UserError, match="has no seed"):
        open_images(f"folder:{folder}#train[seed=3]")


@pytest.mark.parametrize(
    ("fragment", "sentence"),
    [
        ("#", "no split is given after '#'"),
        ("#val", r"no split val \(it has: train, test, all\)"),
        ("#[:80", "is not a split"),
        ("#[80]", "'80' is not understood"),
        ("#[:80%,sed=1]", "'sed=1' is not understood"),
        ("#[:50%,50%:]", "two slices"),
        ("#[seed=1]", "no slice"),
        ("#[:120%]", "more than 100 %"),
        ("#[50%:50%]", "no picture is left"),
    ],
)
def test_mistakes_are_one_sentence(fragment: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        open_images(f"sklearn:digits{fragment}")
    assert "sklearn:digits" in str(raised.value)


def test_labels_cannot_shape_an_unlabelled_split(tmp_path: Path) -> None:
    uri = npz(tmp_path / "x.npz", [0, 1] * 10)
    with pytest.raises(UserError, match="are used as unlabelled"):
        open_images(f"{uri}#[:50%,stratify]", role="unlabelled")
    unlabelled = open_images(uri, role="unlabelled")
    assert unlabelled.labels is None
    with pytest.raises(UserError, match="needs labels"):
        holdout(unlabelled, seed=0, stratify=True)
    with pytest.raises(UserError, match="too few"):
        holdout(open_images(f"{uri}#[:1]"), seed=0, stratify=False)


def test_fragment_grammar() -> None:
    found = parse_fragment("train[20%:60%, seed=3, stratify]")
    assert found[:8] == ("train", "20%", "60%", True, 3, True, None, None) and found.one_of_many
    fixed = parse_fragment("[:500]"), parse_fragment("val")
    assert fixed[0][:8] == (None, None, "500", True, 0, False, None, None) and not fixed[0].one_of_many
    assert fixed[1][:8] == ("val", None, None, False, 0, False, None, None)
    assert all(parse_fragment(text).one_of_many for text in ("[dirichlet=1]", "[longtail=10]", "[:5,seed=0]"))


def test_drawn_priors_are_those_of_the_subset_and_as_many_as_fit() -> None:
    keys, labels = torch.arange(3000), torch.arange(3000) % 3
    for seed in range(5):
        kept = with_drawn_priors(keys, labels, 3, 1.0, seed)
        counts = labels[kept].bincount(minlength=3)
        gammas = Draws(seed, torch.arange(3), "label shift/").gamma("dirichlet", 1.0).double()
        assert (counts / counts.sum() - gammas / gammas.sum()).abs().max() < 0.002
        assert counts.max() == 1000  # a class is used up: no larger subset has these priors
        order = torch.randperm(3000, generator=torch.Generator().manual_seed(seed))
        assert keys[order][with_drawn_priors(keys[order], labels[order], 3, 1.0, seed)].sort().values.equal(kept)


def test_large_alpha_keeps_nearly_all_and_small_alpha_nearly_one_class() -> None:
    keys, labels = torch.arange(1000), torch.arange(1000) % 10
    assert len(with_drawn_priors(keys, labels, 10, 10_000.0, 0)) > 950
    shares = []
    for seed in range(20):
        counts = labels[with_drawn_priors(keys, labels, 10, 0.01, seed)].bincount().double()
        assert counts.isfinite().all() and counts.sum() > 0
        shares.append(float(counts.max() / counts.sum()))
    assert sum(shares) / 20 > 0.9


def test_dirichlet_in_a_uri() -> None:
    plain = open_images("sklearn:digits#train[seed=3]")
    assert plain.labels is not None
    shifted = [open_images(f"sklearn:digits#train[dirichlet=0.5,seed={seed}]") for seed in (3, 3, 4)]
    assert torch.equal(shifted[0].keys(), shifted[1].keys()) and shifted[0].split_hash() != shifted[2].split_hash()
    assert torch.isin(shifted[0].keys(), plain.keys()).all() and len(shifted[0]) < len(plain)
    unseen = open_images("sklearn:digits#train[dirichlet=0.5,seed=3]", role="unlabelled")
    assert unseen.labels is None and torch.equal(unseen.keys(), shifted[0].keys())
    assert len(open_images("sklearn:digits#[dirichlet=1]")) < 1797
    for wrong in ("dirichlet=0", "dirichlet=-1", "dirichlet=x", "dirichlet=99999"):
        with pytest.raises(UserError, match="dirichlet"):
            open_images(f"sklearn:digits#[{wrong}]")


def test_dirichlet_without_labels_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="dirichlet draws class priors, so it needs one label for each picture"):
        open_images(f"folder:{tmp_path}#[dirichlet=1]")


def test_a_long_tail_falls_exponentially_and_is_as_large_as_fits() -> None:
    keys, labels = torch.arange(4000), torch.arange(4000) % 4
    kept = with_long_tail(keys, labels, 100.0, seed=1)
    assert labels[kept].bincount().tolist() == [1000, 215, 46, 10]  # 1000 * 100^(-k / 3), by hand
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert keys[order][with_long_tail(keys[order], labels[order], 100.0, seed=1)].sort().values.equal(kept)
    assert not with_long_tail(keys, labels, 100.0, seed=2).equal(kept)
    assert len(with_long_tail(keys, labels, 1.0, seed=1)) == 4000
    # The first class has few images, so all others have fewer still; a class without any takes no place in the tail.
    few = torch.cat([torch.zeros(50), torch.full((900,), 2), torch.full((900,), 3)]).long()
    assert few[with_long_tail(torch.arange(1850), few, 25.0, seed=0)].bincount().tolist() == [50, 0, 10, 2]
    assert labels[with_long_tail(keys, labels, 99_999.0, seed=0)].bincount().min() == 1


def test_long_tail_in_a_uri(tmp_path: Path) -> None:
    tail, plain = open_images("sklearn:digits#train[longtail=10,seed=3]"), open_images("sklearn:digits#train[seed=3]")
    assert tail.labels is not None and torch.isin(tail.keys(), plain.keys()).all()
    counts = tail.labels.bincount().double()
    assert torch.allclose(counts, counts[0] * 10.0 ** (-torch.arange(10).double() / 9), atol=1.0)
    for wrong in ("longtail=0.5", "longtail=x", "longtail=10,dirichlet=1"):
        with pytest.raises(UserError, match="longtail"):
            open_images(f"sklearn:digits#[{wrong}]")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="longtail changes class sizes, so it needs one label for each picture"):
        open_images(f"folder:{tmp_path}#[longtail=10]")


def test_one_of_each_identity_whatever_the_order() -> None:
    keys = torch.tensor([7, 7, 3, 9, 3, 7])
    rows = one_of_each(keys, 0)
    assert keys[rows].tolist() == hash_order(keys, 0) and rows.sort().values.tolist() == [0, 2, 3]
    many = torch.arange(1000).repeat(2)
    chosen = one_of_each(many, 4, 200)
    assert len(chosen) == 200 and bool((chosen < 1000).all()) and chosen.tolist() != sorted(chosen.tolist())
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    assert many[order][one_of_each(many[order], 4, 200)].tolist() == many[chosen].tolist()
    assert len(one_of_each(keys[:0], 0)) == 0
