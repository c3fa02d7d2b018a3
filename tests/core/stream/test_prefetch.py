"""Prefetched batches come in order, never more than `depth` ahead, and everything is cleaned up."""

import threading
from collections.abc import Generator
from itertools import pairwise

import pytest
import torch

from rootstock.core.method import RawBatch
from rootstock.core.stream.order import Order
from rootstock.core.stream.prefetch import in_blocks, in_thread, pack_indices, to_device, unpack_indices

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a side stream needs a GPU")


def gatherers() -> int:
    return sum(thread.name == "rootstock-gather" for thread in threading.enumerate())


def counted(n: int, made: list[int]) -> Generator[int]:
    try:
        for k in range(n):
            made.append(k)
            yield k
    finally:
        made.append(-1)


def test_a_thread_keeps_the_order() -> None:
    assert list(in_thread(counted(100, []))) == list(range(100))
    assert list(in_thread(counted(0, []))) == []
    assert gatherers() == 0


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_thread_is_never_further_ahead_than_said(depth: int) -> None:
    """`made` grows before an item is handed over; each consumed item makes room for another one."""
    made: list[int] = []
    ahead = in_thread(counted(50, made), depth)
    most = 0
    for taken, _ in enumerate(ahead, 1):
        most = max(most, len([k for k in made if k >= 0]) - taken)
    assert 0 <= most <= depth


def test_what_the_source_raises_is_raised_in_its_turn() -> None:
    def failing() -> Generator[int]:
        yield 1
        raise ArithmeticError("at the second")

    ahead = in_thread(failing())
    assert next(ahead) == 1
    with pytest.raises(ArithmeticError, match="at the second"):
        next(ahead)
    assert gatherers() == 0


@pytest.mark.parametrize("end", ["close", "interrupt"])
def test_leaving_early_ends_the_thread_and_closes_the_source(end: str) -> None:
    made: list[int] = []
    ahead = in_thread(counted(1000, made))
    assert [next(ahead), next(ahead)] == [0, 1] and gatherers() == 1
    if end == "close":
        ahead.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            ahead.throw(KeyboardInterrupt)
    assert gatherers() == 0 and made[-1] == -1 and len(made) <= 6


def test_leaving_while_the_thread_waits_for_room_ends_it() -> None:
    made: list[int] = []
    full = threading.Event()

    def source() -> Generator[int]:
        for k in range(1000):
            made.append(k)
            if k == 2:  # one is consumed and two are ready, so there is no room for a fourth
                full.set()
            yield k

    ahead = in_thread(source(), 2)
    assert next(ahead) == 0
    full.wait()
    ahead.close()
    assert gatherers() == 0 and len(made) == 3


def test_batches_pass_through_on_the_cpu() -> None:
    batch = [RawBatch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2), torch.arange(2))]
    closed: list[int] = []

    def source() -> Generator[list[RawBatch]]:
        try:
            yield batch
            yield batch
        finally:
            closed.append(1)

    sent = to_device(source(), CPU)
    assert next(sent) is batch
    sent.close()
    assert closed == [1]


@pytest.mark.parametrize("micro", [1, 3])
def test_numbers_sent_in_blocks_are_those_of_the_steps(micro: int) -> None:
    order = Order(100, 12, seed=0)
    slices = [slice(a, b) for a, b in pairwise(range(0, 13, 12 // micro))]
    steps = list(order.steps(3, 30, slices))
    for first in range(0, len(steps), 8):
        block = steps[first : first + 8]
        numbers = pack_indices(block)
        assert numbers.shape == (2, 12 * len(block))
        for cut, step in zip(unpack_indices(numbers, block), block, strict=True):
            assert all(
                torch.equal(a, b) for one, two in zip(cut, step, strict=True) for a, b in zip(one, two, strict=True)
            )
    assert sum(1 for _ in in_blocks(iter(steps), CPU, 8)) == len(steps)


@needs_gpu
def test_samples_arrive_on_a_gpu_as_they_were_sent() -> None:
    device = torch.device("cuda")
    micro = [[_sample(10 * k + m) for m in range(2)] for k in range(7)]

    def source() -> Generator[list[RawBatch]]:
        for step in micro:
            yield [pinned(sample) for sample in step]

    for sent, step in zip(to_device(source(), device), micro, strict=True):
        for a, b in zip(sent, step, strict=True):
            assert a.images.is_cuda and torch.equal(a.extra["local"].cpu(), b.extra["local"])
            assert all(torch.equal(x.cpu(), y) for x, y in zip(a[:3], b[:3], strict=True))


@needs_gpu
def test_numbers_arrive_on_a_gpu() -> None:
    order = Order(100, 12, seed=0)
    for sent, step in zip(in_blocks(order.steps(0, 20), torch.device("cuda"), 8), order.steps(0, 20), strict=True):
        assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in zip(sent[0], step[0], strict=True))


def pinned(sample: RawBatch) -> RawBatch:
    images, positions, labels = (value.pin_memory() for value in sample[:3])
    return RawBatch(images, positions, labels, {"local": sample.extra["local"].pin_memory()})


def _sample(seed: int) -> RawBatch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return RawBatch(pixels, torch.arange(4) + seed, torch.arange(4), {"local": pixels[:, None]})
