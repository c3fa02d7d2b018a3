"""The sets of a stage: classes aligned by name, held-out parts, their entry in the result, and images that earlier stages saw."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.open import Images, open_images
from rootstock.core.images.sets import (
    LABELLED,
    add_seen,
    align,
    count_seen,
    describe_sets,
    exposure,
    fingerprints,
    labelled,
    open_tests,
    refuse_one_class,
    seen_in_training,
    seen_without_labels,
    train_and_tests,
    trained_with_labels,
    untrained_classes,
)


def draw(root: Path, classes: Sequence[str], each: int = 4, seed: int = 0) -> str:
    """The URI of a folder of random images, in class folders if classes are given."""
    random = np.random.default_rng(seed)
    for name in classes or [""]:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            picture = Image.fromarray(random.integers(0, 256, (6 + i, 8, 3), dtype=np.uint8))
            picture.save(root / name / f"{i}.png")
    return f"folder:{root}"


def named(images: Images) -> list[tuple[str, str]]:
    """(image, class name) of all images."""
    assert images.labels is not None and images.classes is not None
    return [(images.name(i), images.classes[label]) for i, label in enumerate(images.labels.tolist())]


def test_labelled_refuses_what_has_no_labels(tmp_path: Path) -> None:
    flat = open_images(draw(tmp_path / "flat", []))
    with pytest.raises(UserError, match=r"^data\.train: folder:.* has no labels; give class folders"):
        labelled(flat, "data.train")
    classes = open_images(draw(tmp_path / "cats", ["cat", "dog"]))
    assert labelled(classes, "data.train") is classes
    with pytest.raises(UserError, match="has no labels"):
        labelled(classes.unlabelled(), "data.train")


def test_align_goes_by_name(tmp_path: Path) -> None:
    images = open_images(draw(tmp_path / "a", ["dog", "bee"]))
    aligned = align(images, ["ant", "bee", "cat", "dog"], "data.test")
    assert aligned.classes == ("ant", "bee", "cat", "dog") and images.classes == ("bee", "dog")
    assert named(aligned) == named(images)
    assert aligned.labels is not None and aligned.labels.unique().tolist() == [1, 3]
    # the given set is unchanged
    assert images.labels is not None and images.labels.unique().tolist() == [0, 1]


def test_align_refuses_an_unknown_class(tmp_path: Path) -> None:
    images = open_images(draw(tmp_path / "a", ["ant", "bee", "eel"]))
    with pytest.raises(
        UserError,
        match=r"^data\.target: folder:.* has classes that the training set lacks \(bee, eel\); known there: ant, cat; rename",
    ):
        align(images, ["ant", "cat"], "data.target")
    # a class without images in this selection is accepted
    assert images.labels is not None
    only = images.select((images.labels == 0).nonzero()[:, 0])
    assert named(align(only, ["cat", "ant"], "data.target")) == named(only)


def test_open_tests(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a", ["x", "y"]), draw(tmp_path / "b", ["x", "y"], seed=1)
    assert list(open_tests(first, 0)) == ["test"]
    both = open_tests({"photo": first, "sketch": second}, 0)
    assert {name: images.uri for name, images in both.items()} == {"photo": first, "sketch": second}


def test_train_and_given_tests(tmp_path: Path) -> None:
    train, test = draw(tmp_path / "a", ["x", "y", "z"]), draw(tmp_path / "b", ["z", "y"], seed=1)
    images, tests = train_and_tests(train, test, 0)
    assert len(images) == 12 and images.classes == ("x", "y", "z")
    assert tests["test"].classes == images.classes and len(tests["test"]) == 8
    odd = draw(tmp_path / "c", ["w", "x"], seed=2)
    with pytest.raises(UserError, match=r"^data\.test: folder:.* lacks \(w\)"):
        train_and_tests(train, odd, 0)
    with pytest.raises(UserError, match=r"^data\.test\.odd: folder:.* lacks \(w\)"):
        train_and_tests(train, {"good": test, "odd": odd}, 0)
    with pytest.raises(UserError, match=r"^data\.train: .* has no labels"):
        train_and_tests(draw(tmp_path / "flat", []), None, 0)


def test_sets_that_need_no_labels_may_have_some(tmp_path: Path) -> None:
    train, odd = draw(tmp_path / "a", ["x", "y"]), draw(tmp_path / "b", ["w", "x"], seed=1)
    flat = draw(tmp_path / "flat", [], seed=2)
    images, tests = train_and_tests(train, {"odd": odd, "flat": flat, "same": train}, 0, labels=False)
    assert images.labels is not None and tests["same"].labels is not None
    assert tests["odd"].labels is None and tests["flat"].labels is None
    kept, held = train_and_tests(flat, None, 0, labels=False)
    assert kept.labels is None and len(kept) + len(held["test"]) == len(tests["flat"])


def test_without_a_test_a_stratified_fifth_is_held_out_by_seed(tmp_path: Path) -> None:
    uri = draw(tmp_path / "a", ["x", "y"], each=10)
    splits = {}
    for seed in (0, 1):
        kept, tests = train_and_tests(uri, None, seed)
        assert list(tests) == ["test"]
        assert not set(named(kept)) & set(named(tests["test"]))
        assert sorted(named(kept) + named(tests["test"])) == sorted(named(open_images(uri)))
        assert tests["test"].labels is not None and tests["test"].labels.bincount().tolist() == [2, 2]
        assert count_seen({"labelled": kept.keys()}, tests) == {"labelled": 0}
        splits[seed] = tests["test"].split_hash()
        assert train_and_tests(uri, None, seed)[1]["test"].split_hash() == splits[seed]
    assert splits[0] != splits[1]


def test_describe(tmp_path: Path) -> None:
    kept, tests = train_and_tests(draw(tmp_path / "a", ["x", "y"], each=10), None, 0)
    sets = {"train": kept, **tests}
    entry = describe_sets(sets, held_out=True)
    assert entry["n"] == {"train": 16, "test": 4} and entry["test"] == "held-out 20% by seed, over content keys"
    assert entry["split"] == {"train": kept.split_hash(), "test": tests["test"].split_hash()}
    # one fingerprint of all sets, independent of their order, that depends on the images
    assert describe_sets(dict(reversed(sets.items())))["fingerprint"] == entry["fingerprint"]
    assert describe_sets({"train": kept})["fingerprint"] != entry["fingerprint"]
    assert "test" not in describe_sets(sets)
    assert fingerprints(sets) == {name: images.fingerprint() for name, images in sets.items()}


def test_count_seen_counts_test_images_by_content(tmp_path: Path) -> None:
    images = open_images(draw(tmp_path / "a", ["x", "y"], each=10))
    first, second = images.select(torch.arange(0, 12)), images.select(torch.arange(8, 20))
    # the same pictures under other names and classes are the same pictures
    (tmp_path / "copy").mkdir()
    for i in range(8, 20):
        (tmp_path / "copy" / f"{i}.png").write_bytes((tmp_path / "a" / images.name(i)).read_bytes())
    copy = open_images(f"folder:{tmp_path / 'copy'}")
    for test in (second, copy, second.unlabelled()):
        assert count_seen({"pretrain": first.keys()}, {"test": test}) == {"pretrain": 4}
    both = {"seen": first, "rest": images.select(torch.arange(12, 20))}
    assert count_seen({"pretrain": first.keys(), "adapt": second.keys()}, both) == {"pretrain": 12, "adapt": 12}
    assert count_seen({}, both) == {}


def test_add_seen_unites_and_keeps_the_stages_apart(tmp_path: Path) -> None:
    images = open_images(draw(tmp_path / "a", ["x", "y"], each=10))
    halves = [images.select(torch.arange(0, 12)), images.select(torch.arange(8, 20))]
    before = add_seen({}, "pretrain", halves[0])
    after = add_seen(before, "pretrain", halves[1])
    assert len(before["pretrain"]) == 12 and len(after["pretrain"]) == 20
    assert torch.equal(after["pretrain"], images.keys().sort().values)
    assert set(add_seen(after, "adapt", halves[0])) == {"pretrain", "adapt"} and set(before) == {"pretrain"}
    assert count_seen(add_seen(before, "adapt", halves[1]), {"test": halves[1]}) == {"pretrain": 4, "adapt": 12}


def test_exposure_counts_images_by_stage_and_labels_apart() -> None:
    images = open_images("sklearn:digits")
    test = images.select(torch.arange(10))
    seen = {"pretrain": images.keys()[5:100], LABELLED: images.keys()[8:9], "adapt": images.keys()[100:]}
    assert exposure(seen, {"test": test}) == {"seen_unlabelled": {"pretrain": 5, "adapt": 0}, "seen_labelled": 1}
    assert exposure({}, {"test": test}) == {"seen_unlabelled": {}, "seen_labelled": 0}


def test_classes_without_a_training_image_are_named_and_counted(tmp_path: Path) -> None:
    """A class may be known by name alone, as where a part of a set is taken."""
    train = open_images(draw(tmp_path / "train", ["ant", "bee", "cat"]))
    test = align(open_images(draw(tmp_path / "test", ["ant", "bee", "cat"], each=3)), train.classes or (), "data.test")
    assert train.labels is not None and untrained_classes(train, {"test": test}) == []
    fewer = train.select((train.labels != 2).nonzero()[:, 0])
    told = "WARNING: {}: {} of {} images are of a class without any training image (cat: {}); accuracy counts them as wrong"
    tests = {"near": test, "far": test.select(torch.arange(8)), "other": test.select(torch.arange(6))}
    assert untrained_classes(fewer, tests) == [told.format("near", 3, 9, 3), told.format("far", 2, 8, 2)]
    one = train.select((train.labels == 1).nonzero()[:, 0])
    assert (
        "6 of 9 images are of 2 classes without any training image (ant: 3, cat: 3)" in untrained_classes(one, tests)[0]
    )
    assert untrained_classes(one, {"test": test.unlabelled()}) == untrained_classes(train.unlabelled(), tests) == []
    refuse_one_class(fewer)
    with pytest.raises(
        UserError,
        match=r"^data\.train: all 4 training images of .* are of the class bee, and .* two classes or more; add",
    ):
        refuse_one_class(one)


def test_classes_without_a_training_image_where_an_image_may_have_several() -> None:
    images = open_images("sklearn:digits#[:6]").select(torch.arange(6))
    images.classes = ("a", "b", "c")
    train, test = images.select(torch.arange(3)), images.select(torch.arange(3, 6))
    train.labels = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 0]], dtype=torch.uint8)
    test.labels = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 0]], dtype=torch.uint8)
    [told] = untrained_classes(train, {"test": test})
    assert told.startswith(
        "WARNING: test: 2 of 3 images are of 2 classes without any training image (b: 2, c: 1); nothing"
    )
    refuse_one_class(train)  # an image has the class or not


def test_tests_that_were_trained_on_with_labels_are_named() -> None:
    """By this run or by an earlier stage; images that were seen without labels have no part."""
    images = open_images("sklearn:digits")
    near, far = images.select(torch.arange(10)), images.select(torch.arange(10, 18))
    seen = add_seen(
        {"pretrain": images.keys(), LABELLED: near.keys()[:2]}, LABELLED, images.select(torch.arange(9, 50))
    )
    told = "WARNING: {}: {} images ({}) are training images too, whose labels are known: scores there say little of new images"
    tests = {"near": near, "far": far, "new": images.select(torch.arange(60, 70))}
    assert trained_with_labels(seen, tests) == [
        told.format("near", "3 of 10", "30.0%"),
        told.format("far", "8 of 8", "100.0%"),
    ]
    assert trained_with_labels({"pretrain": images.keys()}, tests) == trained_with_labels({}, tests) == []


def test_tests_that_were_seen_without_labels_are_named() -> None:
    """An image that two stages saw counts once, and those that were seen with labels have no part."""
    images = open_images("sklearn:digits")
    near, far = images.select(torch.arange(10)), images.select(torch.arange(10, 18))
    seen = {"pretrain": near.keys()[:4], "adapt": near.keys()[2:7], LABELLED: images.keys(), "distill": far.keys()[:0]}
    told = (
        "near: 7 of 10 images (70.0%) were seen in training without labels, by pretrain, adapt: scores may be lower on images that no "
        "training saw"
    )
    assert seen_without_labels(seen, {"near": near, "far": far}) == [told]
    assert seen_in_training(seen, {"near": near}) == [*trained_with_labels(seen, {"near": near}), told]
    assert seen_in_training({}, {"near": near}) == []
