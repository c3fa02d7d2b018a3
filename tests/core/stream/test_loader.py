"""The loader compared with a plain loop, and its clean-up when it ends early."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import _utils
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from rootstock.core.errors import UserError
from rootstock.core.stream import loader
from rootstock.core.stream.loader import BATCHES_AHEAD, PART, _parts, join_parts, read_in_workers, widened
from rootstock.core.stream.workers import WorkerLost

SIZES = [5, 140, 1, 65, 128]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python warns when a process with threads forks its workers; and three workers on however few cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    yield
    torch.set_num_threads(before)


def rows(index: np.ndarray, weight: np.ndarray) -> dict[str, Tensor]:
    """Images whose pixels all equal their index, and a number for each row."""
    pixels = torch.from_numpy(index % 251).to(torch.uint8)[:, None, None].expand(-1, 3, 5).contiguous()
    return {"pixels": pixels, "number": torch.from_numpy(index * weight)}


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    return [(random.integers(0, 1000, size), random.integers(0, 9, size)) for size in SIZES]


def descriptors() -> set[str]:
    """The open files, after the threads that feed DataLoader's queues have closed theirs."""
    for thread in threading.enumerate():
        if thread.name.startswith("QueueFeeder"):
            thread.join()
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> bool:
    return all(
        list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in b)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("micro", [1, 4])
def test_batches_come_whole_and_in_order(workers: int, micro: int) -> None:
    found = list(read_in_workers(rows, batches(), workers=workers, micro=micro))
    assert same(found, [rows(*columns) for columns in batches()])


def test_a_slot_is_written_again_only_when_it_was_read() -> None:
    """More parts than slots, with different contents; all results are kept."""
    many = [(np.full(PART, k), np.ones(PART, dtype=np.int64)) for k in range(200)]
    found = list(read_in_workers(rows, many, workers=3))
    assert [int(batch["number"].unique()) for batch in found] == list(range(200))


def test_no_batches() -> None:
    assert list(read_in_workers(rows, [], workers=2)) == []


def test_parts_are_small_enough_for_several_workers() -> None:
    counts: deque[int] = deque()
    parts = list(_parts(batches(), counts))
    sizes = [len(index) for index, _ in parts]
    assert list(counts) == SIZES and max(sizes) <= PART and sizes == [5, 47, 47, 46, 1, 33, 32, 64, 64]
    for k, column in enumerate(zip(*batches(), strict=True)):
        assert np.array_equal(np.concatenate([part[k] for part in parts]), np.concatenate(column))


class Growing:
    """Rows that become deeper, and too large for slots of the first row's size."""

    def __call__(self, index: np.ndarray) -> dict[str, Tensor]:
        deep = bool((index >= 100).any())
        pixels = torch.from_numpy(index)[:, None].expand(-1, 4000 if deep else 10).contiguous()
        return {f"wide{deep}": pixels}


def test_what_does_not_fit_into_a_slot_comes_all_the_same() -> None:
    columns = [(np.arange(k, k + 10),) for k in (0, 200, 10, 300)]
    found = list(read_in_workers(Growing(), columns, workers=2))
    assert same(found, [Growing()(*part) for part in columns])


class Deep:
    """8 or 16 bits, by the row's number: a part with one 16-bit image is 16-bit as a whole."""

    def __call__(self, index: np.ndarray) -> dict[str, Tensor]:
        pixels = torch.from_numpy(index % 256).to(torch.uint8)
        return {"pixels": widened(pixels) if (index % 64 == 63).any() else pixels}


@pytest.mark.parametrize("workers", [0, 2])
def test_depths_that_meet_in_a_batch(workers: int) -> None:
    (found,) = read_in_workers(Deep(), [(np.arange(96),)], workers=workers)
    assert found["pixels"].dtype == torch.uint16
    assert found["pixels"].int().tolist() == [257 * k for k in range(96)]


def test_joined_takes_no_more_than_its_rows() -> None:
    parts = iter([{"x": torch.arange(3)}, {"x": torch.arange(4)}, {"x": torch.arange(5)}])
    assert join_parts(parts, 7)["x"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert next(parts)["x"].tolist() == [0, 1, 2, 3, 4]


class Refusing:
    def __call__(self, index: np.ndarray) -> dict[str, Tensor]:
        if (index == 70).any():
            raise UserError("picture 70 is gone; bring it back")
        if (index == 90).any():
            raise ArithmeticError("a mistake of ours")
        return {"x": torch.from_numpy(index)}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_turn_and_ends_the_workers(workers: int) -> None:
    before = descriptors()
    found = read_in_workers(Refusing(), [(np.arange(k, k + 40),) for k in (0, 40)], workers=workers)
    assert next(found)["x"].tolist() == list(range(40))
    with pytest.raises(UserError, match=r"^picture 70 is gone; bring it back$"):
        next(found)
    assert not multiprocessing.active_children() and descriptors() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_of_ours_keeps_its_type(workers: int) -> None:
    with pytest.raises(ArithmeticError, match="a mistake of ours"):
        list(read_in_workers(Refusing(), [(np.arange(80, 100),)], workers=workers))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("end", ["close", "interrupt"])
def test_leaving_early_ends_the_workers_and_closes_their_files(end: str) -> None:
    before = descriptors()
    found = read_in_workers(rows, (batches()[1] for _ in range(100)), workers=2)
    next(found)
    assert len(multiprocessing.active_children()) == 2
    if end == "close":
        found.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            found.throw(KeyboardInterrupt)
    assert not multiprocessing.active_children() and descriptors() == before


def test_a_lost_worker_does_not_interrupt_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader's SIGCHLD handler would raise an error at an arbitrary place."""
    monkeypatch.setattr(_utils.signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        found = read_in_workers(rows, batches(), workers=1)
        next(found)
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        found.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader checks its workers every few milliseconds instead of every five seconds."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.02)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.02,))


class Killing:
    """Row 470 kills the process that reads it; reading the row `stuck` never ends."""

    def __init__(self, number: int, stuck: int = -1) -> None:
        self.number, self.stuck = number, stuck

    def __call__(self, index: np.ndarray) -> dict[str, Tensor]:
        if (index == 470).any():
            os.kill(os.getpid(), self.number)
        while (index == self.stuck).any():
            signal.pause()
        return {"x": torch.from_numpy(index)}


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(("workers", "stuck"), [(1, -1), (3, -1), (3, 430)])
def test_a_killed_worker_is_one_sentence_and_leaves_no_process(workers: int, stuck: int) -> None:
    """Also if another worker is stuck; all workers ignore SIGTERM."""
    before = descriptors()
    found = read_in_workers(
        Killing(signal.SIGKILL, stuck), ((np.arange(k, k + 40),) for k in range(0, 4000, 40)), workers=workers
    )
    with pytest.raises(WorkerLost, match=r"^a loader process was killed by SIGKILL, which happens when memory"):
        list(found)
    assert not multiprocessing.active_children() and descriptors() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_workers_leave_it_to_the_main_process_when_to_stop(number: int) -> None:
    columns = [(np.arange(k, k + 40),) for k in range(0, 800, 40)]
    found = list(read_in_workers(Killing(number), columns, workers=2))
    assert [batch["x"].tolist() for batch in found] == [index.tolist() for (index,) in columns]


@pytest.mark.parametrize(
    ("workers", "micro", "rows_each"), [(1, 1, PART), (2, 2, 2 * PART), (3, 1, 3 * PART), (4, 1, 5)]
)
def test_no_more_is_read_ahead_than_there_are_slots_for(
    workers: int, micro: int, rows_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BATCHES_AHEAD steps of micro-batches, rounded up to equally many parts for each worker, at least two."""
    slots, given, real = list[int](), list[int](), loader._slots

    def counted(read: Any, first: Any, count: int) -> Any:
        slots.append(count)
        return real(read, first, count)

    def columns() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for k in range(60):
            given.append(k)
            yield np.full(rows_each, k), np.ones(rows_each, dtype=np.int64)

    monkeypatch.setattr(loader, "_slots", counted)
    pieces = max(1, rows_each // PART)
    ahead = max(2 * workers, BATCHES_AHEAD * micro * pieces + workers - 1)  # parts
    for used, batch in enumerate(read_in_workers(rows, columns(), workers=workers, micro=micro), 1):
        assert int(batch["number"][0]) == used - 1
        assert len(given) * pieces <= used * pieces + ahead + pieces - 1
    assert slots[0] - 1 <= ahead and len(given) == 60


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(read_in_workers(rows, batches(), workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_share_the_cores_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loader.at_most_cores(3) == 3 and loader.at_most_cores(9) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loader.at_most_cores(9) == 2 and loader.at_most_cores(0) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert loader.at_most_cores(9) == 1
