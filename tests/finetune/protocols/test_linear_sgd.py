"""Published linear evaluations: their numbers, and every head against one that torch trains alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rootstock.core import hostmemory
from rootstock.core.errors import UserError
from rootstock.core.evaluate.held_out import held_out_rows
from rootstock.core.evaluate.sgd_heads import Head, HeadTraining
from rootstock.core.views.view import Evaluation
from rootstock.finetune.protocols.contract import Counts, Known
from rootstock.finetune.protocols.linear_sgd import LINEAR_PRESETS, LinearSGD
from rootstock.finetune.protocols.registry import chosen_protocols, other_views
from rootstock.tests.core.evaluate import test_sgd_heads as heads

CLASSES = ("ant", "bee", "cat", "dog")


def train() -> Known:
    x, y = heads.features()
    return Known(x, y, torch.arange(len(y)), CLASSES, heads.SEED)


def test_presets_are_their_publications() -> None:
    """The table of evaluation protocols, number by number."""
    shared = {"momentum": 0.9, "augment": "crops", "cached_epochs": None}
    simclr = {
        "inputs": ("pooled",),
        "lr": (0.1,),
        "optimizer": "nesterov",
        "steps": None,
        "warmup": 0.0,
        "init_std": 0.0,
    }
    rates = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    expected: dict[str, dict[str, Any]] = {
        "linear-simclr": {**simclr, "weight_decay": (1e-6,), "epochs": 90, "batch_size": 4096, "normalise": False},
        "linear-simclr-cifar": {**simclr, "weight_decay": (0.0,), "epochs": 100, "batch_size": 512, "normalise": False},
        "linear-mae": {
            "inputs": ("cls",), "lr": (0.1,), "weight_decay": (0.0,), "optimizer": "lars", "epochs": 90, "steps": None,
            "batch_size": 16384, "warmup": 10 / 90, "init_std": 0.01, "normalise": True,
        },
        "linear-dinov2": {
            "inputs": ("cls", "cls+mean", "last4", "last4+mean"), "lr": rates, "weight_decay": (0.0,), "optimizer": "sgd",
            "epochs": None, "steps": 12_500, "batch_size": 1024, "warmup": 0.0, "init_std": 0.01, "normalise": False,
        },
    }  # fmt: skip
    assert LINEAR_PRESETS.keys() == expected.keys()
    for name, numbers in expected.items():
        made = chosen_protocols({"presets": [name]}, ())[name]
        assert isinstance(made, LinearSGD)
        assert made.settings == {"preset": name, **numbers, **shared}
        section = LinearSGD(preset=name)  # pyright: ignore[reportArgumentType]
        assert section.settings == made.settings
    assert len(LinearSGD(preset="linear-dinov2").candidates) == 52
    assert LinearSGD(preset="linear-dinov2", epochs=3).settings["steps"] is None
    assert LinearSGD(preset="linear-mae", steps=3).settings["epochs"] is None


@pytest.mark.parametrize("preset", ["linear-simclr", "linear-mae"])
def test_a_single_head_is_trained_on_all_images_as_torch_trains_it(preset: Any) -> None:
    option = LinearSGD(preset=preset, inputs=("cls",), batch_size=40, epochs=5, augment="none")
    fitted, known = option.fit(train()), train()
    found = option.settings
    training = HeadTraining(
        steps=12,
        batch_size=40,
        optimizer=found["optimizer"],
        warmup_steps=1 if preset == "linear-mae" else 0,
        init_std=found["init_std"],
        normalise=found["normalise"],
    )
    head = Head("cls", 0.1 * 40 / 256, found["weight_decay"][0])
    model = heads.alone(known.features["cls"], known.labels, head, training)
    test, _ = heads.features(1)
    torch.testing.assert_close(fitted.scores(test), model(test["cls"]).detach(), rtol=1e-4, atol=1e-4)
    assert (fitted.chosen, fitted.candidates, fitted.held_out) == ({}, (), None)
    said = fitted.facts["settings"]
    assert said["trained"] == {"steps": 12, "warmup_steps": training.warmup_steps, "batch_size": 40}
    assert said["chosen"] == "nothing" and said["iterate"] == "last" and said["preset"] == preset


def test_candidates_are_chosen_on_the_slice_and_the_best_is_trained_on_all() -> None:
    """Each candidate alone by torch, on the fitted part; then the best one on all images."""
    known = train()
    option = LinearSGD(
        preset="linear-dinov2", inputs=("cls", "cls+mean"), lr=(0.01, 1.0, 3.0), batch_size=36, steps=20, augment="none"
    )
    fitted = option.fit(known)
    outer = held_out_rows(known.keys, known.labels, seed=heads.SEED)
    inner = Known(
        {tap: x[~outer] for tap, x in known.features.items()}, known.labels[~outer], known.keys[~outer], CLASSES
    )
    training = HeadTraining(steps=20, batch_size=36, init_std=0.01)
    scores = []
    for one in option.candidates:
        model = alone(inner.features[one.tap], inner.labels, Head(one.tap, one.lr * 36 / 256), training)
        logits = model(known.features[one.tap][outer]).detach()
        right = int((logits.argmax(1) == known.labels[outer]).sum())
        scores.append((right, -float(cross_entropy(logits, known.labels[outer])), logits))
    hits = [row["accuracy"] * int(outer.sum()) for row in fitted.candidates]
    assert hits == pytest.approx([right for right, _, _ in scores])
    best = max(range(6), key=lambda i: scores[i][:2])
    assert fitted.chosen == option.candidates[best]._asdict()
    assert [(row["tap"], row["lr"]) for row in fitted.candidates] == [(c.tap, c.lr) for c in option.candidates]
    assert fitted.held_out is not None and torch.equal(fitted.held_out[1], known.labels[outer])
    torch.testing.assert_close(fitted.held_out[0], scores[best][2], rtol=1e-4, atol=1e-4)
    winner = option.candidates[best]
    model = alone(known.features[winner.tap], known.labels, Head(winner.tap, winner.lr * 36 / 256), training)
    test, _ = heads.features(1)
    torch.testing.assert_close(fitted.scores(test), model(test[winner.tap]).detach(), rtol=1e-4, atol=1e-4)


def alone(x: Tensor, y: Tensor, head: Head, training: HeadTraining) -> nn.Module:
    """`heads.alone`, for a set of any size."""
    before, heads.N = heads.N, len(y)
    try:
        return heads.alone(x, y, head, training)
    finally:
        heads.N = before


def test_a_candidate_that_diverges_is_told_and_not_chosen() -> None:
    option = LinearSGD(inputs=("cls",), lr=(0.1, 1e30), weight_decay=(1.0,), batch_size=30, epochs=3, augment="none")
    fitted = option.fit(train())
    assert fitted.chosen["lr"] == 0.1
    assert [row.get("diverged", False) for row in fitted.candidates] == [False, True]
    for rates in ((1e30,), (1e29, 1e30)):
        with pytest.raises(
            UserError, match=r"linear_sgd: the training diverged at lr = 1e\+.. and weight_decay = 1; give lower"
        ):
            LinearSGD(inputs=("cls",), lr=rates, weight_decay=(1.0,), epochs=3, augment="none").fit(train())


def test_crops_are_read_epoch_by_epoch() -> None:
    """With epochs that all show the same, the weights are those of the stored features; with others, they are not."""
    known = train()
    test, _ = heads.features(1)

    def fitted(shift: float, cached: int | None) -> Tensor:
        option = LinearSGD(inputs=("cls",), batch_size=40, epochs=3, augment="crops", cached_epochs=cached)
        moved = known._replace(epoch=lambda e, taps, kept: {tap: known.features[tap] + shift * e for tap in taps})
        return option.fit(moved).scores(test)

    plain = LinearSGD(inputs=("cls",), batch_size=40, epochs=3, augment="none").fit(known).scores(test)
    assert torch.equal(fitted(0.0, None), plain) and torch.equal(fitted(1.0, 1), plain)
    assert not torch.equal(fitted(1.0, None), plain) and not torch.equal(fitted(1.0, 2), fitted(1.0, None))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"epochs": 3, "steps": 3}, "evaluate.linear_sgd: epochs and steps are given; expected one of them"),
        ({"epochs": 0}, "evaluate.linear_sgd.epochs: 0 is given"),
        ({"momentum": 1.0}, "evaluate.linear_sgd.momentum: 1.0 is given; expected a number from 0 to below 1"),
        ({"init_std": math.inf}, "evaluate.linear_sgd.init_std: inf is given"),
        ({"inputs": ()}, "no candidate"),
        ({"lr": (0.0,)}, "evaluate.linear_sgd.lr: 0.0 is given"),
        ({"lr": (0.1, 1e31)}, r"evaluate.linear_sgd.lr: 1e\+31 is given; expected numbers from 1e-30 to 1e\+30"),
        ({"lr": (5e-324,)}, "evaluate.linear_sgd.lr: 5e-324 is given"),
        ({"weight_decay": (1e300,)}, r"evaluate.linear_sgd.weight_decay: 1e\+300 is given; expected numbers from 0"),
        ({"init_std": 1e300}, r"evaluate.linear_sgd.init_std: 1e\+300 is given; expected 0 to 1000"),
        ({"preset": "linear-mae", "batch_size": 1}, "evaluate.linear_sgd.normalise: .* two images or more"),
        ({"augment": "none", "cached_epochs": 2}, "cached_epochs: 2 is given, but nothing is augmented"),
    ],
)
def test_numbers_out_of_range_are_named(option: dict[str, Any], sentence: str) -> None:
    _, y = heads.features()
    counts = Counts(y, torch.arange(len(y)), CLASSES)
    with pytest.raises(UserError, match=sentence):
        LinearSGD(**option).requires("linear_sgd", counts)


def test_heads_beyond_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostmemory, "available", lambda: 10**6)
    _, y = heads.features()
    shapes = {tap: (width,) for tap, width in {"cls": 400, "cls+mean": 800, "last4": 1600, "last4+mean": 2000}.items()}
    with pytest.raises(
        UserError, match=r"linear_sgd: 52 candidates take 4.0 MB, more than half of the 1.0 MB of memory"
    ):
        LinearSGD(preset="linear-dinov2").requires("linear-dinov2", Counts(y, torch.arange(90), CLASSES, shapes))


def test_a_view_other_than_the_published_one_is_said() -> None:
    presets = [
        "linear-simclr",
        "linear-simclr-cifar",
        "linear-dinov2",
        "attentive-capi",
        "knn-dino",
        "knn-lightly",
        "logreg",
    ]
    protocols = chosen_protocols({"presets": presets, "knn": {}}, ("pooled",))

    def other(size: int, **options: Any) -> dict[str, str]:
        said = other_views(protocols, Evaluation(size, **options).in_words())
        return {line.split(": published")[0]: line for line in said}

    capi = "attentive-capi-cls, attentive-capi-avg_patch, attentive-capi-patch"
    bicubic = f"linear-simclr, linear-dinov2, {capi}, knn-dino"
    assert list(other(224, resize=256, interpolation="bicubic")) == ["linear-simclr-cifar", "knn-lightly", "logreg"]
    assert list(other(224, interpolation="bicubic")) == [bicubic, "linear-simclr-cifar", "knn-lightly"]
    assert list(other(224, crop=0.875)) == [bicubic, "linear-simclr-cifar", "logreg"]
    assert other(32)["knn-lightly"] == (
        "knn-lightly: published with pictures resized to 256 and cropped to 224 px, bilinear; here pictures resized and cropped to "
        "32 px, bilinear (data.size, data.resize and data.interpolation)"
    )
    assert "linear-simclr-cifar" not in other(32)
