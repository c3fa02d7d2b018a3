"""Further views of an image: the weak one stays as it is, each has draws of its own, and runs with them resume to the same bits."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rootstock.core import stage
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Domains, Labelled, RawBatch, Unlabelled
from rootstock.core.train.turns import in_turn
from rootstock.core.views.multiview import multiview
from rootstock.core.views.presets import VIEWS
from rootstock.launch.verbs import execute
from rootstock.tests.adapt.digits import sets

CONFIG: dict[str, Any] = {
    "label_shift": {"resamples": 0},
    "data": {**sets(size=20), "size": 16, "views": "digits_weak"},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}},
    "optim": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "batch_size": 8, "duration": 6},
    "evaluate": None,
    "run": {"log_every": 1, "workers": 0, "device": "cpu", "checkpoint": {"every": 3}},
}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def start(folder: Path, method: Any, *overrides: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "method": method}))
    execute("adapt", str(folder / "config.yaml"), [f"run.dir={folder / 'run'}", *overrides], quiet=True)


def batches(folder: Path, method: Any, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[Domains]:
    """What the method gets in its first two steps."""
    found: list[Domains] = []

    def spy(_: Any, raw: Any, prepare: Any, **__: Any) -> None:
        stream = raw(0)
        found.extend(prepare(next(stream)[0]) for _ in range(2))
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(stage, "fit", spy)
        with pytest.raises(InterruptedError):
            start(folder, method, *overrides)
    return found


def test_further_views_change_no_pixel_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = batches(tmp_path / "one", "source_only", monkeypatch)
    two = batches(tmp_path / "two", "fixmatch", monkeypatch)
    four = batches(tmp_path / "four", "adamatch", monkeypatch, "data.strong=simclr")
    for a, b, c in zip(one, two, four, strict=True):
        assert [len(x.source.more) for x in (a, b, c)] == [0, 0, 1] and [len(x.target.more) for x in (a, b, c)] == [
            0,
            1,
            1,
        ]
        for other in (b, c):
            assert torch.equal(a.source.images, other.source.images)
            assert torch.equal(a.target.images, other.target.images)
            assert other.target.more[0].shape == other.target.images.shape
            assert not torch.allclose(other.target.more[0], other.target.images)
        assert not torch.allclose(b.target.more[0], c.target.more[0])  # RandAugment, SimCLR's colours


def test_a_view_is_the_same_from_workers_and_on_the_device() -> None:
    """Crops of pictures of any size, made where they are decoded, and of a set that lies on the device."""
    pictures = torch.randint(256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = Draws(1, torch.arange(40, 46), "target/")
    weak, strong = (multiview(VIEWS[name](), 16, MEAN, STD, 1) for name in ("supervised", "fixmatch"))
    both, plain = weak.beside([strong]), RawBatch(pictures, draws.positions, torch.empty(0))
    found = both(plain, draws).images
    assert torch.equal(found[0], weak(plain, draws).images[0])
    cropped = both.crop_each(list(pictures), draws)
    assert cropped["images"].shape == (6, 2, 3, 16, 16)
    assert torch.equal(both(plain._replace(images=cropped["images"]), draws).images, found)
    rows = Draws(1, torch.arange(42, 44), "target/")
    assert torch.equal(
        both(plain._replace(images=pictures[2:4]), rows).images, found[:, 2:4]
    )  # another process's share


def test_turns_leave_further_views_as_they_are() -> None:
    images, draws = torch.zeros(2, 3, 4, 4), Draws(0, torch.arange(2))
    batch = Domains.of(
        Labelled(images, torch.zeros(2), draws, (images,)), Unlabelled(images, draws, more=(images + 1, images))
    )
    later = in_turn(batch, 2)
    assert isinstance(later.target, Unlabelled) and [len(later.source.more), len(later.target.more)] == [1, 2]
    assert torch.equal(later.target.more[0], images + 1) and later.target.draws.prefix == "turn2/"


def test_a_view_that_no_method_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.strong: dann takes no strong view of an image; leave it out"):
        start(tmp_path / "a", {"name": "dann", "hidden": 8}, "data.strong=fixmatch")
    with pytest.raises(UserError, match=r"data\.strong\.flip: 2.0 is given; expected probabilities"):
        start(tmp_path / "b", "fixmatch", "data.strong={name: fixmatch, flip: 2.0}")
    with pytest.raises(UserError, match=r"data\.strong\.local: 8 local crops are given, but fixmatch uses none"):
        start(tmp_path / "c", "fixmatch", "data.strong={name: dino, blur: 0.1, solarize: 0.1}")


def states(folder: Path) -> list[str]:
    names = ("checkpoints/step-00000006/model.safetensors", "classifier/backbone.safetensors")
    return [hashlib.sha256((folder / "run" / name).read_bytes()).hexdigest() for name in names]


def logged(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "data_wait")} for row in rows]


@pytest.mark.parametrize(
    ("method", "watched"),
    [
        ({"name": "fixmatch", "threshold": 0.2}, "confident"),
        ({"name": "adamatch", "momentum": 0.5}, "confident"),
        ({"name": "mcd", "generator_steps": 1, "mic": {"momentum": 0.5}}, "turn0/mic_quality"),
    ],
    ids=["fixmatch", "adamatch", "mcd and mic"],
)
def test_a_stopped_run_ends_with_the_same_bits(method: dict[str, Any], watched: str, tmp_path: Path) -> None:
    start(tmp_path, method, "run.checkpoint.keep=2")
    straight, rows = states(tmp_path), logged(tmp_path)
    assert all(watched in row for row in rows if "lr" in row) and len(rows) == 6
    run = tmp_path / "run"
    for name in ("result.json", "backbone", "classifier", "checkpoints/step-00000006"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    start(tmp_path, method, "run.checkpoint.keep=2")
    assert states(tmp_path) == straight and logged(tmp_path) == rows


def test_a_frozen_backbone_encodes_every_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that are computed once would be those of one view."""
    for k, method in enumerate(("fixmatch", {"name": "source_only", "mic": {}})):
        overrides = ("data.views=none", "backbone.freeze=all")
        (batch, _) = batches(tmp_path / str(k), method, monkeypatch, *overrides)
        seen: list[Tensor] = [batch.source.images, batch.target.images, *batch.target.more]
        assert all(images.shape == (8, 3, 16, 16) for images in seen)
