"""Wrong labels on purpose: how many, which and what they become; what a training learns by heart; and that tests keep theirs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.finetune.training.label_noise import with_label_noise
from rootstock.launch.verbs import execute

DIGITS = "sklearn:digits?size=8"
CONFIG: dict[str, Any] = {
    "data": {"train": f"{DIGITS}#[:200,seed=1]", "test": f"{DIGITS}#[200:260,seed=1]", "size": 8, "views": "none", "label_noise": 0.4},
    "backbone": {"name": "smallconv"},
    "optim": {"name": "adamw", "lr": 5e-3, "batch_size": 50, "duration": 80},
    "evaluate": {"held_out": 0.2},
    "run": {"workers": 0, "device": "cpu"},
}  # fmt: skip


def test_exactly_the_share_and_every_other_class_alike() -> None:
    images = open_images(DIGITS)
    assert images.labels is not None
    unique = len(images.keys().unique())
    for share in (0.0, 0.2, 0.45):
        noisy = with_label_noise(images, share, seed=3)
        assert noisy.images.labels is not None and noisy.images.labels.dtype == torch.int64
        assert len(images.keys()[noisy.replaced].unique()) == round(share * unique)
        assert torch.equal(noisy.images.labels != images.labels, noisy.replaced)
        assert torch.equal(noisy.true, images.labels) and noisy.images.labels.max() == 9
    # From each class into each other one: 1,797 x 0.45 / 90 = 9 on average.
    pairs = (images.labels * 10 + noisy.images.labels)[noisy.replaced].bincount(minlength=100).view(10, 10)
    assert (
        pairs.diagonal().sum() == 0 and (pairs + 100 * torch.eye(10, dtype=torch.int64)).min() >= 1 and pairs.max() < 25
    )
    assert images.labels.bincount().tolist() == open_images(DIGITS).labels.bincount().tolist()  # pyright: ignore[reportOptionalMemberAccess]


def test_it_is_a_function_of_content_and_seed() -> None:
    images = open_images(f"{DIGITS}#[:300,seed=1]")
    noisy = with_label_noise(images, 0.3, seed=0)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    again = with_label_noise(images.select(order), 0.3, seed=0)
    assert noisy.images.labels is not None and again.images.labels is not None
    assert torch.equal(again.images.labels, noisy.images.labels[order])
    other, more = (with_label_noise(images, share, seed) for share, seed in ((0.3, 1), (0.5, 0)))
    assert not torch.equal(other.replaced, noisy.replaced) and bool(more.replaced[noisy.replaced].all())
    twice = images.select(torch.cat([torch.arange(300), torch.arange(50)]))  # copies
    copies = with_label_noise(twice, 0.3, seed=0).images.labels
    assert (
        copies is not None and torch.equal(copies[300:], copies[:50]) and torch.equal(copies[:300], noisy.images.labels)
    )


def test_a_small_network_learns_wrong_labels_by_heart_and_the_test_is_clean(tmp_path: Path) -> None:
    result = execute("finetune", {**CONFIG, "run": {**CONFIG["run"], "dir": str(tmp_path / "noisy")}}, quiet=True)
    found = result["label_noise"]
    assert found["replaced"] == 80 and 50 < found["trained"] < 80  # some are held out
    assert found["memorised"] > 0.5 and found["memorised"] + found["recovered"] <= 1.0
    metrics = result["metrics"]
    assert metrics["wrong_labels/classifier/memorised"] == found["memorised"]
    assert metrics["wrong_labels/classifier/recovered"] == found["recovered"]
    assert next(iter(metrics)).startswith("test/")  # the headline stays the test's
    assert json.loads((tmp_path / "noisy" / "result.json").read_text())["label_noise"] == found
    clean = {**CONFIG, "data": {**CONFIG["data"], "label_noise": 0.0}}
    other = execute("finetune", {**clean, "run": {**CONFIG["run"], "dir": str(tmp_path / "clean")}}, quiet=True)
    assert "label_noise" not in other and other["data"]["split"]["test"] == result["data"]["split"]["test"]
    assert other["metrics"]["test/classifier/accuracy"] > metrics["test/classifier/accuracy"] + 0.1


@pytest.mark.parametrize("share", [-0.1, 1.0, 7.0])
def test_a_share_out_of_range_is_refused(share: float, tmp_path: Path) -> None:
    config = {
        **CONFIG,
        "data": {**CONFIG["data"], "label_noise": share},
        "run": {**CONFIG["run"], "dir": str(tmp_path)},
    }
    with pytest.raises(UserError, match=rf"data\.label_noise: expected a share .* less than 1, got {share}"):
        execute("finetune", config, quiet=True)
