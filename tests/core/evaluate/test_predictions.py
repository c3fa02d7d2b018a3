"""predictions.safetensors: written and read back, float16 that keeps predictions, damage, and numbers that follow from the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from scipy.special import softmax

from rootstock.core.errors import UserError
from rootstock.core.evaluate.measures import measure
from rootstock.core.evaluate.predictions import (
    Predictions,
    SavedScores,
    ScoredImages,
    read_predictions,
    to_half,
)
from rootstock.core.manifest import DamagedFile, write_manifest
from rootstock.core.run.rows import PREDICTIONS

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


def example() -> Predictions:
    random = np.random.default_rng(0)
    keys = random.integers(-(2**63), 2**63 - 1, 30)
    images = ScoredImages(
        keys, random.integers(0, 6, 30), CLASSES, random.integers(0, 2, 30), ("plain", "photo"), np.arange(30) // 3
    )
    found = Predictions()
    found.add("a/classifier", images, to_half(5 * random.normal(size=(30, 6)), "logits"))
    found.add("a/knn", images, to_half(random.random((30, 6)), "votes"))
    found.add("a/fewshot/5", images, to_half(random.random((4, 30, 6)), "similarities"))
    several = ScoredImages(keys[:9], (random.random((9, 6)) < 0.3).astype(np.uint8), CLASSES)
    found.add("several", several, to_half(random.normal(size=(9, 6)), "logits"))
    return found


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    example().write(tmp_path)
    first = (tmp_path / PREDICTIONS).read_bytes()
    found, expected = read_predictions(tmp_path), example()
    assert found is not None
    assert found.tests.keys() == expected.tests.keys() and found.scores.keys() == expected.scores.keys()
    for name, images in expected.tests.items():
        for field in ("keys", "labels", "groups", "clusters"):
            assert np.array_equal(getattr(found.tests[name], field), getattr(images, field)) or field == "clusters"
        assert (found.tests[name].classes, found.tests[name].group_names) == (images.classes, images.group_names)
        assert found.tests[name].split == images.split
    for key, (kind, scores) in expected.scores.items():
        assert found.scores[key].kind == kind and np.array_equal(found.scores[key].scores, scores)
    example().write(tmp_path)
    assert (tmp_path / PREDICTIONS).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS]


def test_every_number_follows_from_the_file(tmp_path: Path) -> None:
    example().write(tmp_path)
    found, expected = read_predictions(tmp_path), example()
    assert found is not None
    for key, saved in expected.scores.items():
        test = key.partition("/")[0]
        again = measure(found.tests[test], found.scores[key], seed=3)
        assert again == measure(expected.tests[test], saved, seed=3), key
        json.dumps(again, allow_nan=False)


def test_no_file_is_no_damage(tmp_path: Path) -> None:
    assert read_predictions(tmp_path) is None


@pytest.mark.parametrize("how", ["flip", "truncate", "lost", "folder"])
def test_damage_is_named(tmp_path: Path, how: str) -> None:
    example().write(tmp_path)
    path = tmp_path / PREDICTIONS
    write_manifest(tmp_path, [PREDICTIONS])
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    elif how == "truncate":
        path.write_bytes(content[:100])
    elif how == "folder":
        path.mkdir()
    with pytest.raises(DamagedFile, match=PREDICTIONS):
        read_predictions(tmp_path)


def changed(folder: Path, about: Any = None, **tensors: Any) -> None:
    example().write(folder)
    content = (folder / PREDICTIONS).read_bytes()
    header = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["about"])
    whole = {**safetensors.numpy.load(content), **{name.replace("_", "/"): array for name, array in tensors.items()}}
    text = json.dumps(about(header) or header) if about else json.dumps(header)
    (folder / PREDICTIONS).write_bytes(safetensors.numpy.save(whole, {"about": text}))


@pytest.mark.parametrize(
    "tensors",
    [
        {"a_keys": np.zeros((30, 2), np.int64)},
        {"a_keys": np.zeros(30, np.int32)},
        {"a_labels": np.full(30, 6)},
        {"a_labels": np.full(30, -1)},
        {"a_groups": np.full(30, 2)},
        {"a_clusters": np.zeros(29, np.int64)},
        {"a_knn_scores": np.zeros((30, 6), np.float32)},
        {"a_knn_scores": np.zeros((29, 6), np.float16)},
        {"a_knn_scores": np.full((30, 6), np.nan, np.float16)},
        {"several_labels": np.zeros((9, 5), np.uint8)},
        {"several_labels": np.full((9, 6), 255, np.uint8)},
        {"several_labels": np.zeros((9, 6), np.int64)},
        {"a_labels": np.zeros(30, np.uint8)},
        {"a_labels": np.zeros(30)},
        {"a_labels": np.array(0)},
    ],
    ids=str,
)
def test_wrong_tensors_are_damage(tmp_path: Path, tensors: Any) -> None:
    changed(tmp_path, **tensors)
    with pytest.raises(DamagedFile, match="not as a run writes it"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    "about",
    [
        lambda a: a["tests"].pop("a") and None,
        lambda a: a["tests"].update(a=3),
        lambda a: a["scores"]["a/knn"].update(kind="guesses"),
        lambda a: a["scores"].update({"b/x": {"kind": "votes"}}),
        lambda a: [1],
        lambda a: a.pop("format") and None,
    ],
)
def test_wrong_headers_are_damage(tmp_path: Path, about: Any) -> None:
    changed(tmp_path, about)
    with pytest.raises(DamagedFile):
        read_predictions(tmp_path)


def test_a_later_format_asks_for_an_update(tmp_path: Path) -> None:
    changed(tmp_path, lambda a: a.update(format=2))
    with pytest.raises(UserError, match="format 2, and this version reads 1; update Rootstock"):
        read_predictions(tmp_path)


def test_float16_saturates_and_keeps_every_prediction() -> None:
    random = np.random.default_rng(0)
    close = 1000 + random.random((500, 4)) / 10  # a step of float16 is 0.5 here
    far = np.concatenate([1e5 + random.random((50, 4)), -1e5 - random.random((50, 4)), [[np.inf, 1e30, 0, -np.inf]]])
    mixed = np.array([[-1e6, 0.0, 1e-9, 1e-10], [-7e4, -1e5, -6.6e4, -1e30]])
    for scores in (close, far, mixed, random.normal(size=(50, 4))):
        kept = to_half(scores, "logits").scores
        assert kept.dtype == np.float16 and np.isfinite(kept).all()
        assert (kept.argmax(1) == scores.argmax(1)).all()
        others = to_half(scores, "similarities").scores
        assert np.isfinite(others).all() and (others.argmax(1) == scores.argmax(1)).all()
    assert np.abs(to_half(close, "similarities").scores - close).max() <= 1.0


@pytest.mark.parametrize("shape", [(500, 3), (2, 250, 3)])
@pytest.mark.parametrize("offset", [0.0, 1000.0, -5000.0, 70_000.0, -1e9])
def test_what_logits_of_an_image_have_in_common_is_not_rounded(offset: float, shape: tuple[int, ...]) -> None:
    """Softmax does not see it, so probabilities of the file are those of the model, whatever it is; each image may have its own."""
    random = np.random.default_rng(0)
    logits = random.normal(size=shape)
    moved = logits + offset * random.random((*shape[:-1], 1))
    kept = to_half(moved, "logits").scores
    assert (kept.max(-1) == 0).all() and kept.dtype == np.float16
    assert np.abs(softmax(kept.astype(float), -1) - softmax(logits, -1)).max() < 1e-3


def test_scores_that_are_read_one_by_one_keep_their_offset() -> None:
    """A sigmoid or a rank of a column depends on it."""
    scores = np.array([[5.0, 3.0], [-2.0, -7.0]])
    assert (to_half(scores, "logits", several=True).scores == scores).all()
    assert (to_half(scores, "similarities").scores == scores).all()


def test_infinite_logits() -> None:
    inf = np.inf
    kept = to_half(np.array([[inf, 1e30, inf], [-inf, -inf, -inf], [-inf, 2.0, 1.0]]), "logits").scores
    assert kept.tolist() == [[0, -65504, 0], [0, 0, 0], [-65504, 0, -1]]


def test_votes_are_shares() -> None:
    votes = np.exp(np.random.default_rng(0).random((20, 5)) / 0.07)  # up to a million
    kept = to_half(votes, "votes").scores
    assert kept.sum(1) == pytest.approx(np.ones(20), abs=2e-3) and (kept.argmax(1) == votes.argmax(1)).all()
    assert to_half(np.zeros((1, 3)), "votes").scores.tolist() == [[0, 0, 0]]


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"t/x: the scores of 1 images are not numbers \(NaN\): the training has diverged"
    ):
        to_half(np.array([[1.0, np.nan], [0.0, 1.0]]), "logits", "t/x")


def test_what_does_not_fit_is_refused() -> None:
    images, found = ScoredImages(np.arange(3), np.zeros(3, int), ("a", "b")), Predictions()
    found.add("t/x", images, to_half(np.zeros((3, 2)), "logits"))
    other = ScoredImages(np.arange(1, 4), np.zeros(3, int), ("a", "b"))
    for key, rows, saved in [
        ("t/y", other, to_half(np.zeros((3, 2)), "logits")),
        ("t/y", images, to_half(np.zeros((3, 3)), "logits")),
        ("t/y", images, to_half(np.zeros((3, 2)), "guess")),
        ("t/y", images, SavedScores("logits", np.zeros((3, 2)))),  # pyright: ignore[reportArgumentType]
    ]:
        with pytest.raises(ValueError):
            found.add(key, rows, saved)


def test_a_missing_one_of_several_labels_is_no_label() -> None:
    """255, or -1 as a byte, is what data sets write for "unknown"; it must not count as the class being there."""
    with pytest.raises(ValueError, match="each is there \\(1\\) or not \\(0\\)"):
        ScoredImages(np.arange(2), np.array([[0, 255], [1, 0]], np.uint8), ("a", "b"))


def test_what_is_written_can_be_read() -> None:
    """Types that the file does not have are refused when it is made, not when it is read."""
    for labels in (np.zeros((3, 2), bool), np.zeros((3, 2)), np.zeros(3, np.int32)):
        with pytest.raises(ValueError, match="expected"):
            ScoredImages(np.arange(3), labels, ("a", "b"))


def test_an_image_that_is_no_number_in_several_draws_is_one() -> None:
    scores = np.zeros((4, 3, 2))
    scores[:, 1] = np.nan
    with pytest.raises(UserError, match="the scores of 1 images"):
        to_half(scores, "logits")
