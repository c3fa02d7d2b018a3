"""Loader processes: the rows of a batch are read in parts by several processes and joined in order.

Parts come back through shared memory that is mapped once and reused. DataLoader's own way (a new file in shared memory for each
tensor, cleared, mapped twice and unmapped) cost 75 us for an image with two views of 96 px, half of the cost of decoding it, and
fails if /dev/shm is small, as in many containers.

Memory beside what `read` itself takes: (parts ahead + 1) slots of PART rows, and the batch that is being joined.
"""

from __future__ import annotations

import atexit
import math
import mmap
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import MachineError, UserError
from ..hostmemory import empty
from .workers import at_most_cores, death_waits, init_worker, kill_workers, worker_lost

PART = 64
"""Rows that a worker reads at once: few, so that several workers share a batch, but enough to make fixed costs small."""
BATCHES_AHEAD = 2
ALIGNMENT = 64

Columns = tuple[np.ndarray, ...]
ReadRows = Callable[..., Mapping[str, Tensor]]


def read_in_workers(
    read: ReadRows, batches: Iterable[Columns], *, workers: int, micro: int = 1, pinned: bool = False
) -> Generator[dict[str, Tensor]]:
    """The rows of each batch as `read` returns them: CPU tensors [n, ...] by name, in the order of `batches`.

    read: read(*columns) -> tensors [m, ...] for m rows, where each row depends only on its own numbers; may raise UserError.
    batches: for each batch its columns, int64 [n] each.
    workers: number of processes, at most one for each core; 0 reads in this process.
    micro: batches of a step; BATCHES_AHEAD steps are read ahead.
    pinned: return tensors in page-locked memory.
    """
    counts: deque[int] = deque()
    workers = at_most_cores(workers)
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        return
    remaining = chain([first], remaining)
    if workers == 0:
        for columns in remaining:
            yield join_parts(iter([read(*columns)]), len(columns[0]), pinned) if pinned else dict(read(*columns))
        return
    ahead = BATCHES_AHEAD * micro * _pieces(len(first[0]))
    results = _worked(read, first, _parts(remaining, counts), workers, max(2, math.ceil(ahead / workers)))
    try:
        for part in results:
            yield join_parts(chain([part], results), counts.popleft(), pinned)
    finally:
        results.close()


def _pieces(rows: int) -> int:
    return max(1, math.ceil(rows / PART))


def _parts(batches: Iterable[Columns], counts: deque[int]) -> Iterator[Columns]:
    """Split each batch into parts of nearly equal size; appends the number of rows of each batch to `counts`."""
    for columns in batches:
        rows = len(columns[0])
        counts.append(rows)
        yield from zip(*(np.array_split(column, _pieces(rows)) for column in columns), strict=True)


def join_parts(parts: Iterator[Mapping[str, Tensor]], rows: int, pinned: bool = False) -> dict[str, Tensor]:
    """Copy the next parts, `rows` rows in all, into one tensor for each name; each part is copied before the next one is requested."""
    whole: dict[str, Tensor] = {}
    start = 0
    while start < rows:
        part = next(parts)
        stop = start + len(next(iter(part.values())))
        for name, value in part.items():
            if name not in whole:
                shape = (rows, *value.shape[1:])
                whole[name] = (
                    torch.empty(shape, dtype=value.dtype, pin_memory=True)
                    if pinned
                    else empty(*shape, dtype=value.dtype)
                )
            elif value.dtype != whole[name].dtype:
                whole[name], value = widened(whole[name]), widened(value)
                whole[name] = whole[name].pin_memory() if pinned else whole[name]
            whole[name][start:stop].copy_(value)
        start = stop
    return whole


def widened(pixels: Tensor) -> Tensor:
    """uint8 as uint16, for batches that mix both: v / 255 = 257 v / 65535 exactly."""
    return pixels if pixels.dtype == torch.uint16 else (pixels.int() * 257).to(torch.uint16)


class _Place(NamedTuple):
    """Where a tensor is stored in a slot."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of all slots


class _Slots:
    """Memory shared with forked processes: `count` slots of `size` bytes, without a file or descriptor."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.bytes = torch.frombuffer(mmap.mmap(-1, count * size), dtype=torch.uint8)

    def write(self, slot: int, tensors: Mapping[str, Tensor]) -> list[_Place] | None:
        """Copy the tensors into a slot. Returns their places, or None if they are too large."""
        if sum(_aligned(value.nbytes) for value in tensors.values()) > self.size:
            return None
        places, offset = [], slot * self.size
        for name, value in tensors.items():
            places.append(_Place(name, value.dtype, tuple(value.shape), offset))
            self._at(places[-1]).copy_(value)
            offset += _aligned(value.nbytes)
        return places

    def read(self, places: list[_Place]) -> dict[str, Tensor]:
        """The tensors of a slot, as views; valid until the slot is written again."""
        return {place.name: self._at(place) for place in places}

    def _at(self, place: _Place) -> Tensor:
        size = math.prod(place.shape) * place.dtype.itemsize
        return self.bytes[place.offset : place.offset + size].view(place.dtype).view(place.shape)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Refused(NamedTuple):
    """A UserError of a worker. machine: whether it was a MachineError."""

    text: str
    machine: bool


class _Parts(Dataset[Any]):
    """A worker's task for (slot, columns): read, write the result to the slot, return its places; or what a UserError said."""

    def __init__(self, read: ReadRows, slots: _Slots | None) -> None:
        self.read, self.slots = read, slots

    def __getitem__(self, task: tuple[int, Columns]) -> Any:
        slot, columns = task
        try:
            tensors = self.read(*columns)
        except UserError as error:
            return _Refused(
                str(error), isinstance(error, MachineError)
            )  # DataLoader would turn the exception into a traceback
        places = None if self.slots is None else self.slots.write(slot, tensors)
        return tensors if places is None else places


def _worked(
    read: ReadRows, first: Columns, parts: Iterator[Columns], workers: int, factor: int
) -> Generator[Mapping[str, Tensor]]:
    """The parts' results in order; each is valid until the next one is requested."""
    # DataLoader has `factor` tasks per worker in progress when it returns a result, so one more slot prevents overwriting it.
    count = factor * workers + 1
    slots = _slots(read, first, count)
    tasks = ((i % count, part) for i, part in enumerate(parts))
    loader = DataLoader(
        _Parts(read, slots),
        batch_size=None,
        sampler=tasks,  # pyright: ignore[reportArgumentType]
        collate_fn=_same,
        num_workers=workers,
        prefetch_factor=factor,
        worker_init_fn=init_worker,
        multiprocessing_context=None if slots is None else "fork",
        generator=torch.Generator(),  # without it, DataLoader would draw from torch's global generator
    )
    with death_waits():
        results: Any = iter(loader)
    processes = list(results._workers)
    # If something keeps this generator alive until the program ends, nothing else ends the workers, which ignore SIGTERM.
    atexit.register(kill_workers, processes)
    try:
        while (result := _next(results, processes)) is not None:
            if isinstance(result, _Refused):
                raise (MachineError if result.machine else UserError)(result.text)
            yield result if slots is None or isinstance(result, dict) else slots.read(result)
    finally:
        # Now, not when the last reference is dropped: an error's traceback would keep the workers alive.
        results._shutdown_workers()
        kill_workers(processes)
        atexit.unregister(kill_workers)


def _next(results: Iterator[Any], processes: Sequence[BaseProcess]) -> Any:
    """The next result; None after the last. Raises WorkerLost."""
    try:
        return next(results, None)
    except RuntimeError:
        if (error := worker_lost(processes)) is None:
            raise
        raise error from None


def _slots(read: ReadRows, first: Columns, count: int) -> _Slots | None:
    """Slots for PART rows of the size of the first row; None on systems where forking is not safe, so that nothing is shared."""
    if sys.platform != "linux":
        return None
    row = read(*(column[:1] for column in first))
    rows = min(PART, len(first[0]))
    return _Slots(count, sum(_aligned(rows * value.nbytes) for value in row.values()))


def _same(result: Any) -> Any:
    return result
