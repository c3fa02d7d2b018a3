"""What a training by steps reads, and how its candidates are chosen."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate.sgd_heads import train_heads
from rootstock.core.stream.order import straddling
from rootstock.finetune.protocols.candidates import (
    Candidate,
    Length,
    StepFeatures,
    check_candidates,
    fit_candidates,
    trainer,
)
from rootstock.finetune.protocols.contract import Features, Known
from rootstock.tests.finetune.protocols.test_protocols import CLASSES, asked, blobs, known

N = 10


class Epochs:
    """Features that say epoch and image: 100 e + i. asked: the epochs in the order in which they were extracted."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, number: int, taps: Sequence[str], kept: bool) -> Features:
        self.asked.append((number, kept))
        return {tap: (100 * number + torch.arange(N))[:, None].float() for tap in taps}


def read(epochs: Epochs, cached: int | None, rows: Tensor) -> list[list[int]]:
    """What each step of 4 images reads in three epochs."""
    train = Known({}, torch.zeros(N, dtype=torch.int64), torch.arange(N), CLASSES, epoch=epochs)
    features = StepFeatures(train, ["cls", "cls"], rows, 4, "crops", cached)
    steps = straddling(0, "heads", len(rows), 4, 3 * len(rows) // 4)
    return [features(step, places)["cls"][:, 0].int().tolist() for step, places in enumerate(steps)]


@pytest.mark.parametrize("cached", [None, 1, 2, 5])
def test_each_epoch_reads_its_own_crops_once(cached: int | None) -> None:
    """Also where a batch reaches into the next epoch, and of a part of the images."""
    epochs, rows = Epochs(), torch.tensor([1, 2, 4, 5, 7, 9])
    found = [value for step in read(epochs, cached, rows) for value in step]
    for epoch in range(3):
        part = found[epoch * len(rows) : (epoch + 1) * len(rows)]
        number = epoch % cached if cached else epoch
        shown = [100 * number + row for row in rows.tolist()]
        assert sorted(part) == shown if epoch < 2 else len(part) == 4 and set(part) < set(shown)
    assert epochs.asked == [(number, cached is not None) for number in range(min(3, cached or 3))]


def test_without_augmentation_the_stored_features_are_read() -> None:
    x = torch.randn(N, 3)
    train = Known({"cls": x, "mean": x}, torch.zeros(N, dtype=torch.int64), torch.arange(N), CLASSES)
    rows = torch.tensor([3, 1, 8])
    found = StepFeatures(train, ["cls"], rows, 2, "none", None)(5, torch.tensor([2, 0]))
    assert found.keys() == {"cls"} and torch.equal(found["cls"], x[[8, 3]])
    with pytest.raises(ValueError, match="cannot be augmented"):
        StepFeatures(train, ["cls"], rows, 2, "crops", None)(0, torch.tensor([0, 1]))


def test_length() -> None:
    """Epochs count images; a batch is cut to the set; the warm-up is a part."""
    assert Length(90, None, 4096, 0.0).of(1000) == (90, 0, 1000)
    assert Length(90, None, 16384, 10 / 90).of(1_281_167) == (7038, 782, 16384)
    assert Length(3, None, 4, 0.5).of(10) == (8, 4, 4)
    assert Length(None, 12_500, 1024, 0.1).of(50_000) == (12_500, 1250, 1024)
    assert Length(None, 1, 8, 0.9).of(3) == (1, 0, 3)


@pytest.mark.parametrize(
    ("length", "sentence"),
    [
        (Length(0, None, 8, 0.0), "x.epochs: 0 is given; expected 1 to 10,000,000"),
        (Length(None, -1, 8, 0.0), "x.steps: -1 is given"),
        (Length(None, 10**12, 8, 0.0), "x.steps: 1000000000000 is given"),
        (Length(1, None, 0, 0.0), "x.batch_size: 0 is given"),
        (Length(1, None, 8, 1.0), "x.warmup: 1.0 is given; expected a part of the steps"),
        (Length(1, None, 8, float("nan")), "x.warmup: nan"),
    ],
)
def test_lengths_out_of_range_are_named(length: Length, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        length.check("x")


def test_candidates_that_cannot_be_trained_or_chosen_are_named() -> None:
    x, y = blobs(40, 0)
    one, two = [Candidate("cls", 0.1, 0.0)], [Candidate("cls", 0.1, 0.0), Candidate("cls", 0.2, 0.0)]
    counts = asked(x, y)
    assert check_candidates("x", one, "crops", 3, counts) == 40
    assert check_candidates("x", two, "none", None, counts) == 32
    for candidates, sentence in (
        ([], "no candidate; give at least one input"),
        ([Candidate("cls", 0.0, 0.0)], "x.lr: 0.0 is given"),
        ([Candidate("cls", float("inf"), 0.0)], "x.lr: inf is given"),
        ([Candidate("cls", 0.1, -1.0)], "x.weight_decay: -1.0 is given"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_candidates("x", candidates, "none", None, counts)
    with pytest.raises(UserError, match="cached_epochs: 3 is given, but nothing is augmented; give augment=crops"):
        check_candidates("x", one, "none", 3, counts)
    with pytest.raises(UserError, match="cached_epochs: 0 is given"):
        check_candidates("x", one, "crops", 0, counts)
    with pytest.raises(UserError, match="to choose among 2 candidates on; give a single input"):
        check_candidates("x", two, "none", None, asked(x, y, y))


@pytest.mark.parametrize(("asked_size", "size"), [(4096, 32), (36, 32), (8, 8)])
def test_the_rate_that_was_chosen_is_the_rate_of_the_training_on_all(asked_size: int, size: int) -> None:
    """Also where a batch would have all images: that of the choice has 32 of the 40."""
    seen: list[tuple[int, list[float]]] = []

    def spy(features: Any, labels: Tensor, k: int, heads: Any, *rest: Any, **more: Any) -> Any:
        seen.append((len(labels), [head.lr for head in heads]))
        return train_heads(features, labels, k, heads, *rest, **more)

    candidates = [Candidate("cls", lr, 0.0) for lr in (0.01, 1.0)]
    x, y = blobs(40, 0)
    fitted = fit_candidates(
        "x", known(x, y), candidates, trainer(known(x, y), Length(2, None, asked_size, 0.0), "none", None, spy)
    )
    best = [one._asdict() for one in candidates].index(dict(fitted.chosen))
    assert seen[0] == (32, pytest.approx([one.lr * size / 256 for one in candidates]))
    assert seen[1] == (40, [seen[0][1][best]])


def test_the_rate_of_a_single_candidate_is_that_of_its_batch() -> None:
    seen, (x, y) = list[float](), blobs(40, 0)

    def spy(features: Any, labels: Tensor, k: int, heads: Any, *rest: Any, **more: Any) -> Any:
        seen.extend(head.lr for head in heads)
        return train_heads(features, labels, k, heads, *rest, **more)

    make = trainer(known(x, y), Length(2, None, 4096, 0.0), "none", None, spy)
    fit_candidates("x", known(x, y), [Candidate("cls", 0.1, 0.0)], make)
    assert seen == [0.1 * 40 / 256]
