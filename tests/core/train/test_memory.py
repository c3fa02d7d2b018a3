"""A step that does not fit into memory names the division of the batch that does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rootstock.core.errors import MachineError
from rootstock.core.method import Labelled, RawBatch, RawPair, Step
from rootstock.core.run.directory import Run
from rootstock.core.train import memory
from rootstock.tests.core.train.test_fit import BATCH, Regression, train

SAID = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    ),
    "host": MemoryError(),
}


class Large(Regression):
    """Rows that are encoded at once beyond `room` do not fit."""

    def __init__(self, error: BaseException, room: int, couples: bool = False, chunk: int | None = None) -> None:
        super().__init__()
        self.error, self.room, self.couples_samples, self.takes_chunk, self.chunk = error, room, couples, couples, chunk

    def forward(self, batch: RawBatch, progress: float) -> Step:
        if min(len(batch.images), self.chunk or BATCH) > self.room:
            raise self.error
        return super().forward(batch, progress)


@pytest.mark.parametrize(
    ("error", "couples", "room", "remedy"),
    [
        ("gpu", False, 4, r"run\.accumulate=2 fits \(4 images at once\)"),
        ("cpu", False, 1, r"run\.accumulate=8 fits \(1 images at once\)"),
        ("host", False, 0, r"use a larger run\.accumulate, run\.activation_checkpointing=true, or more processes"),
        ("cpu", True, 2, r"run\.chunk=2 fits"),
        ("gpu", True, 0, r"use run\.chunk"),
    ],
)
def test_it_names_what_fits(error: str, couples: bool, room: int, remedy: str, opened: Callable[..., Run]) -> None:
    with pytest.raises(
        MachineError,
        match=rf"out of memory in step 1, with 8 images at once .*; {remedy}.*, then run the command again",
    ):
        train(opened(), Large(SAID[error], room, couples))


def test_with_the_remedy_it_runs(opened: Callable[..., Run]) -> None:
    train(opened(), Large(SAID["gpu"], 4), micro=2)
    train(opened("chunks"), Large(SAID["gpu"], 2, couples=True, chunk=2))


def test_a_method_without_chunks_needs_another_batch(opened: Callable[..., Run]) -> None:
    method = Large(SAID["gpu"], 4, couples=True)
    method.takes_chunk = False
    with pytest.raises(MachineError, match=r"more processes, or a smaller optim\.batch_size in another run\.dir"):
        train(opened(), method)


def test_other_errors_are_raised_as_they_are(opened: Callable[..., Run]) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        train(opened(), Large(RuntimeError("shapes differ"), 4))


def test_both_parts_of_a_pair_are_cut() -> None:
    local = {"local": torch.zeros(6, 2, 3, 1, 1)}
    raw = RawBatch(torch.zeros(6, 3, 2, 2), torch.arange(6), torch.empty(0), local, torch.arange(6))
    source, target = memory._first_rows(RawPair(raw, raw), 2)  # pyright: ignore[reportPrivateUsage]
    for part in (source, target):
        sizes: list[Any] = [len(part.images), len(part.positions), len(part.labels), len(part.extra["local"])]
        assert sizes == [2, 2, 0, 2] and part.index.tolist() == [0, 1]
    assert isinstance(RawPair(raw, raw), RawPair) and Labelled is not RawPair
