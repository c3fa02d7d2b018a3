"""Checkpoints exist whole or not at all, and a damaged one is named and passed over."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from rootstock.core import files
from rootstock.core.errors import UserError
from rootstock.core.train import checkpoint
from rootstock.core.train.checkpoint import Checkpoint

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]


def example(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    model = {"a.weight": torch.randn(3, 4, generator=generator), "a.count": torch.tensor(step)}
    moments = {"a.weight//exp_avg": torch.randn(3, 4, generator=generator)}
    return Checkpoint(step, model, moments, {"groups": [{"lr": 0.1, "betas": [0.9, 0.999]}], "scaler": {}})


def same(found: Checkpoint | None, expected: Checkpoint) -> bool:
    def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)

    assert found is not None
    return (
        (found.step, found.state) == (expected.step, expected.state)
        and equal(found.model, expected.model)
        and equal(found.optimizer, expected.optimizer)
    )


def no_warning(message: str) -> None:
    raise AssertionError(message)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert checkpoint.latest(folder, no_warning) is None
    path = checkpoint.save(folder, example(7), keep=2)
    assert path.name == "step-00000007" and sorted(os.listdir(path)) == sorted(FILES)
    assert same(checkpoint.latest(folder, no_warning), example(7))


def as_second(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """This process is the second of two; the first has said so. No other lacks anything."""
    monkeypatch.setattr(checkpoint, "rank", lambda: 1)
    monkeypatch.setattr(checkpoint, "broadcast_text", lambda mine: answer)


def test_all_processes_go_on_from_what_the_first_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    for step in (4, 7):
        checkpoint.save(tmp_path, example(step), keep=2)
    assert same(checkpoint.agreed(tmp_path, no_warning, device), example(7))
    for answer, expected in (("4", 4), ("7", 7)):
        as_second(monkeypatch, answer)
        assert same(checkpoint.agreed(tmp_path, no_warning, device), example(expected))
    as_second(monkeypatch, "")
    assert checkpoint.agreed(tmp_path, no_warning, device) is None
    as_second(monkeypatch, "9")
    with pytest.raises(
        UserError,
        match=r"step 9 .* which other processes do not find there; put run.dir on a disk that all nodes share",
    ):
        checkpoint.agreed(tmp_path, no_warning, device)
    as_second(monkeypatch, "no whole checkpoint there")
    with pytest.raises(UserError, match=r"^no whole checkpoint there$"):
        checkpoint.agreed(tmp_path, no_warning, device)


@pytest.mark.parametrize(("keep", "left"), [(0, [3, 4]), (1, [3, 4]), (2, [3, 4]), (3, [2, 3, 4])])
def test_at_least_two_are_kept(keep: int, left: list[int], tmp_path: Path) -> None:
    for step in range(1, 5):
        checkpoint.save(tmp_path, example(step), keep)
    assert checkpoint.steps(tmp_path) == left


def test_the_old_are_deleted_only_when_the_new_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, example(step), keep=2)
    seen: list[list[int]] = []
    remove = shutil.rmtree

    def watched(path: Path, ignore_errors: bool = False) -> None:
        if path.name == "step-00000001":
            newest = checkpoint.latest(tmp_path, no_warning)
            assert same(newest, example(3))
            seen.append(checkpoint.steps(tmp_path))
        remove(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watched)
    checkpoint.save(tmp_path, example(3), keep=2)
    assert seen == [[1, 2, 3]]


@pytest.mark.parametrize("when", ["model.safetensors", "state.json", "MANIFEST.json", "rename"])
def test_a_failure_in_the_middle_leaves_the_old_and_no_half(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, example(step), keep=2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if when == "rename":
            patch.setattr(Path, "rename", full)
        else:
            tensors, text = files.write_tensors, files.write_text
            patch.setattr(files, "write_tensors", lambda p, t: full() if p.name == when else tensors(p, t))
            patch.setattr(files, "write_text", lambda p, t: full() if p.name == when else text(p, t))
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(tmp_path, example(3), keep=2)
    assert checkpoint.steps(tmp_path) == [1, 2] and same(checkpoint.latest(tmp_path, no_warning), example(2))
    checkpoint.save(tmp_path, example(3), keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_falls_back_and_is_named(file: str, tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, example(step), keep=2)
    damaged = tmp_path / "step-00000020" / file
    for bit in random.Random(file).sample(range(8 * damaged.stat().st_size), 40):
        flip(damaged, bit)
        said: list[str] = []
        assert same(checkpoint.latest(tmp_path, said.append), example(10)), bit
        (message,) = said
        assert str(damaged) in message and message.endswith("falling back to the checkpoint of step 10"), bit
        flip(damaged, bit)
    assert same(checkpoint.latest(tmp_path, no_warning), example(20))


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_falls_back_and_is_named(file: str, tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, example(step), keep=2)
    (tmp_path / "step-00000020" / file).unlink()
    said: list[str] = []
    assert same(checkpoint.latest(tmp_path, said.append), example(10))
    assert len(said) == 1 and file in said[0] and "step 10" in said[0]


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, example(step), keep=2)
    (tmp_path / "step-00000020").rename(tmp_path / "step-00000030")
    assert same(checkpoint.latest(tmp_path, lambda _: None), example(10))


def test_damaged_later_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, example(step), keep=4)
    for step in (30, 40):
        flip(tmp_path / f"step-{step:08d}" / "model.safetensors", 900)
    checkpoint.save(tmp_path, example(25), keep=2)
    assert checkpoint.steps(tmp_path) == [20, 25]
    assert same(checkpoint.latest(tmp_path, no_warning), example(25))


def test_without_a_whole_one_it_says_so(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, example(step), keep=2)
        flip(tmp_path / f"step-{step:08d}" / "state.json", 3)
    with pytest.raises(
        UserError, match=r"no undamaged checkpoint in .*step-00000020.*step-00000010.*choose another run\.dir"
    ):
        checkpoint.latest(tmp_path, no_warning)


def test_foreign_files_and_drafts_are_no_checkpoints(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(10), keep=2)
    (tmp_path / "step-copy").mkdir()
    (tmp_path / ".step-00000020").mkdir()
    assert checkpoint.steps(tmp_path) == [10]


def test_tensors_that_share_memory_are_each_written_in_full(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    whole = Checkpoint(1, {"a": shared, "b": shared.view(2, 3).T}, {}, {})
    checkpoint.save(tmp_path, whole, keep=2)
    assert same(checkpoint.latest(tmp_path, no_warning), whole)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_moments_get_back_the_strides_of_their_weights(name: str, tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, dict[torch.Tensor, str]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        kinds = {"adamw": torch.optim.AdamW, "sgd": lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k)}
        optimizer = kinds[name](model.parameters(), lr=0.1, fused=True)
        return model, optimizer, {p: n for n, p in model.named_parameters()}

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()

    straight, optimizer, names = build()
    train(straight, optimizer, range(3))
    moments = checkpoint.optimizer_tensors(optimizer, names)
    checkpoint.save(tmp_path, Checkpoint(3, straight.state_dict(), moments, {}), keep=2)
    train(straight, optimizer, range(3, 6))

    saved = checkpoint.latest(tmp_path, no_warning)
    assert saved is not None
    resumed, optimizer, names = build()
    resumed.load_state_dict(saved.model)
    checkpoint.restore_optimizer(optimizer, names, saved.optimizer)
    for parameter, state in optimizer.state.items():
        assert all(t.stride() == parameter.stride() for t in state.values() if t.shape == parameter.shape)
    train(resumed, optimizer, range(3, 6))
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    files.write_text(path, json.dumps({"old": 1}))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, json.dumps({"new": 2}))
    assert json.loads(path.read_text()) == {"old": 1}
