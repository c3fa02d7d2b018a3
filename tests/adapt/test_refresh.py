"""The index of each target image, and refreshes: when, in which mode, of what, and after a stop."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from rootstock.adapt.aad import AaD
from rootstock.adapt.sets import open_sets
from rootstock.adapt.shot import SHOT
from rootstock.core import stage
from rootstock.core.config.duration import Duration
from rootstock.core.errors import UserError
from rootstock.core.method import AdaptMethod, Overview
from rootstock.core.run.directory import Interrupted
from rootstock.core.stream.batches import Share
from rootstock.core.stream.order import Order
from rootstock.core.stream.rows import KeptRows, stream_rows
from rootstock.core.train.refresh import NEVER, Refresh
from rootstock.core.views.view import Evaluation
from rootstock.launch.verbs import execute
from rootstock.tests.adapt.digits import sets
from rootstock.tests.adapt.look_steps import COUNT, look
from rootstock.tests.conftest import Forks

STEPS, BATCH, TARGETS = 9, 8, 40  # so an epoch of the target has five steps
KINDS: dict[str, type[AdaptMethod]] = {"shot": SHOT, "aad": AaD}
CONFIG: dict[str, Any] = {
    "label_shift": {"resamples": 0},
    "data": {**sets(size=16), "size": 16, "views": "digits_weak"},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}},
    "method": {"name": "source_only", "bottleneck": 6},
    "optim": {"name": "sgd", "lr": 0.1, "batch_size": BATCH, "duration": STEPS},
    "evaluate": None,
    "run": {"log_every": 1, "workers": 0, "device": "cpu", "checkpoint": {"every": "100%", "keep": 2}},
}


def start(folder: Path, *overrides: str, **sections: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **sections}))
    return execute("adapt", str(folder / "config.yaml"), [f"run.dir={folder / 'run'}", *overrides], quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `backbone` section of a run on the source."""
    folder = tmp_path_factory.mktemp("trained")
    start(folder)
    return {"weights": str(folder / "run")}


def result(folder: Path) -> tuple[list[str], dict[str, Tensor]]:
    """What a run ends with: digests of what it exports, and its last checkpoint, buffers included."""
    names = ("backbone/backbone.safetensors", "classifier/head.safetensors", "classifier/bottleneck.safetensors")
    digests = [hashlib.sha256((folder / "run" / name).read_bytes()).hexdigest() for name in names]
    return digests, load_file(folder / "run" / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


@pytest.mark.parametrize("name", KINDS)
def test_stopped_at_a_refresh_and_after_one_it_ends_with_the_same_bits(
    name: str, trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {"method": {"name": name}, "backbone": trained}
    start(tmp_path / "straight", **sections)
    forward = KINDS[name].forward

    def stopping(method: Any, batch: Any, progress: float) -> Any:
        if round(progress * STEPS) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(method, batch, progress)

    monkeypatch.setattr(KINDS[name], "forward", stopping)
    for stop_at in (4, 6):  # step 5 is the first of the second epoch
        with pytest.raises(Interrupted, match=f"saved at step {stop_at + 1} of {STEPS}"):
            start(tmp_path / "stopped", **sections)
    stop_at = -1
    start(tmp_path / "stopped", **sections)
    (digests, kept), (expected, tensors) = result(tmp_path / "stopped"), result(tmp_path / "straight")
    assert digests == expected
    assert kept.keys() == tensors.keys() and all(torch.equal(kept[key], tensors[key]) for key in kept)
    banks = {"shot": {"pseudo_labels", "changed"}, "aad": {"bank_features", "bank_predictions"}}[name]
    assert banks <= kept.keys()


@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])
def test_a_refresh_sees_the_whole_target_in_evaluation(
    frozen: bool, trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the steps at which an epoch of the target begins; each row of what is seen belongs to the image of its index."""
    data = {**CONFIG["data"], "views": "none"}
    target = open_sets(data, 0).target
    asked: list[float] = []
    trains: set[bool] = set()
    refresh, forward = SHOT.refresh, SHOT.forward

    def looking(method: Any, seen: Overview, progress: float) -> None:
        asked.append(round(progress * STEPS))
        assert not any(module.training for module in method.modules()) and not torch.is_grad_enabled()
        assert seen.index.tolist() == list(range(TARGETS))
        model = method.backbone
        images = Evaluation(16, mean=model.mean, std=model.std)(torch.stack([target.read(i) for i in range(TARGETS)]))
        torch.testing.assert_close(seen.features, method.classifier.features(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen.logits, method.classifier(images), rtol=1e-4, atol=1e-5)
        refresh(method, seen, progress)

    def stepping(method: Any, batch: Any, progress: float) -> Any:
        trains.add(method.training and method.classifier.bottleneck.training)
        known = [target.read(i) for i in batch.target.index.tolist()]
        if not frozen:  # without augmentation, the images that the index names
            model = method.backbone
            view = Evaluation(16, mean=model.mean, std=model.std)
            torch.testing.assert_close(batch.target.images, view(torch.stack(known)))
        return forward(method, batch, progress)

    monkeypatch.setattr(SHOT, "refresh", looking)
    monkeypatch.setattr(SHOT, "forward", stepping)
    backbone = {**trained, **({"freeze": "all"} if frozen else {})}
    start(tmp_path / "run", method={"name": "shot"}, backbone=backbone, data=data)
    assert asked == [0, 5] and trains == {True}


def test_the_index_is_the_row_of_each_image_in_every_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: dict[str, Any]
) -> None:
    looked: list[bool] = []
    target = open_sets(CONFIG["data"], 0).target

    def spy(method: Any, batches: Any, prepare: Any, **options: Any) -> None:
        for micro in batches(3):
            for raw in micro:
                pictures = torch.stack([target.read(i) for i in raw.target.index.tolist()])
                looked.append(torch.equal(raw.target.images, pictures))
                assert torch.equal(prepare(raw).target.index, raw.target.index) and len(pictures) == BATCH // 2

    monkeypatch.setattr(stage, "fit", spy)
    start(tmp_path / "a", "run.accumulate=2", "backbone.norm=group:2", method={"name": "dann", "hidden": 4})
    assert looked == [True] * 2 * (STEPS - 3)
    rows = torch.randn(TARGETS, 3)
    order = Order(TARGETS, BATCH, seed=1, name="target")
    for rank in range(2):
        share = Share(rank, 2, 2)
        found = stream_rows(lambda: KeptRows(rows), None, order, steps=STEPS, device=torch.device("cpu"), share=share)
        for step, micro in enumerate(found(0)):
            for part, cut in zip(micro, share.slices(BATCH), strict=True):
                assert torch.equal(part.index, order.indices(step, cut)) and torch.equal(part.images, rows[part.index])


def test_two_processes_see_what_one_sees(tmp_path: Path, forks: Forks) -> None:
    """Bit for bit; and where each has BatchNorm statistics of its own, both see the same."""
    forks.group(Path(__file__).with_name("look_steps.py"), tmp_path / "out.safetensors")
    found, alone = load_file(tmp_path / "out.safetensors"), look()
    assert alone.index.tolist() == list(range(COUNT))
    for name, value in alone._asdict().items():
        assert torch.equal(found[name], value), name
    assert torch.equal(found["own"], found["least"]) and not torch.equal(found["own"], found["logits"])


def test_durations_are_the_targets(trained: dict[str, Any]) -> None:
    method: Any = SHOT.__new__(SHOT)
    torch.nn.Module.__init__(method)
    for given, every in (("1ep", 5), ("50%", 10), (7, 7), ("0.01ep", 1), ("100%", 20)):
        method.refresh_every = Duration.parse(given)
        assert Refresh.of(method, 20, 5, lambda: pytest.fail("not yet")).every == every
    method.refresh_every = None
    assert Refresh.of(method, 20, 5, lambda: pytest.fail("never")) is NEVER
    assert NEVER.before(method, 0, 20) == 0.0


def test_a_run_in_which_nothing_could_learn_is_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    start(tmp_path / "plain", method={"name": "source_only"}, optim={**CONFIG["optim"], "duration": 1})
    backbone = {"weights": str(tmp_path / "plain" / "run"), "freeze": "all"}
    with pytest.raises(
        UserError,
        match=r"method: shot keeps the head as it is, and .* nothing; freeze less, or start from a run with a bottleneck",
    ):
        start(tmp_path / "a", method={"name": "shot"}, backbone=backbone)
    with pytest.raises(UserError, match=r"backbone\.weights: none holds no classifier; give the folder of a finetune"):
        start(tmp_path / "b", method={"name": "aad"})
    with pytest.raises(UserError, match=r"method\.neighbours: 40 other images are asked for, and the target has 40"):
        start(tmp_path / "c", method={"name": "aad", "neighbours": 40}, backbone=trained)
