"""How the rows of all processes come together: in rounds, in which each process adds some batches and all get the rows of all.

A round is bounded, so features may be larger than the memory: the rows go where a store puts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..distributed import all_reduce_max, all_reduce_sum, gather_equal, rank, world

# Numbers that all processes exchange at once, at most (256 MB in float32), to bound the memory on the device.
NUMBERS_AT_ONCE = 1 << 26
MOST_AXES = 4


class StorageFailed(Exception):
    """Rows cannot be stored; the message says where and why. Raised on all processes."""


class ExceedsDtype(Exception):
    """The dtype of a store cannot hold some numbers (`is_lost`). Raised on all processes. names: of these features."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(", ".join(names))
        self.names = names


class RowStore(Protocol):
    """Takes the rows of one kind of features, in any order, each once. On several processes each has one, and all get all rows.

    dtype: of the stored numbers. checked: whether numbers that this dtype cannot hold are an error.
    """

    dtype: torch.dtype
    checked: bool

    def put(self, start: int, rows: Tensor) -> None:
        """Store rows, [m, ...] of `dtype` on the CPU, from row `start` on. Raises OSError."""
        ...

    def finish(self) -> Tensor:
        """All rows, [N, ...]. Every process calls it. Raises StorageFailed on all processes."""
        ...

    def discard(self) -> None:
        """Nobody will ask for the rows; no error."""
        ...


def is_lost(exact: Tensor, stored: Tensor) -> bool:
    """Whether numbers became infinite in a smaller dtype, or all of an image's numbers are so small that they lost digits."""
    if bool((exact.isfinite() & ~stored.isfinite()).any()):
        return True
    if stored.dtype != torch.float16 or exact.dtype == stored.dtype:
        return False
    largest = exact.flatten(1).abs().amax(1)
    return bool(((largest > 0) & (largest < torch.finfo(stored.dtype).tiny)).any())


def failure_words(error: Exception, place: Path | None = None) -> str:
    """An error in words, with the file that it names, or else `place`."""
    if isinstance(error, OSError) and error.strerror:
        named = error.filename or place
        return f"{named}: {error.strerror}" if named else error.strerror
    return str(error)


MakeStores = Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, RowStore]]
"""Stores by name, from the shape of one image's features by name. Every process calls it once. May raise StorageFailed on all processes."""


class _Memory:
    def __init__(self, n: int, shape: tuple[int, ...], dtype: torch.dtype, checked: bool) -> None:
        self.dtype, self.checked = dtype, checked
        self.rows = torch.zeros(n, *shape, dtype=dtype)

    def put(self, start: int, rows: Tensor) -> None:
        self.rows[start : start + len(rows)] = rows

    def finish(self) -> Tensor:
        return self.rows

    def discard(self) -> None:
        pass


def stores_in_memory(n: int, dtypes: Mapping[str, torch.dtype], checked: bool = False) -> MakeStores:
    """Stores in the memory of each process, for n images."""
    return lambda shapes: {name: _Memory(n, shape, dtypes[name], checked) for name, shape in shapes.items()}


def own_batches(n: int, batch_size: int, of: int) -> list[range]:
    """The rows of each batch of process `of`, in order. Batches hold the same images on any number of processes."""
    starts = range(0, n, batch_size)
    share = -(-len(starts) // world())
    return [range(start, min(start + batch_size, n)) for start in starts[of * share : (of + 1) * share]]


class ExtractionRounds:
    """The batches of one process, a round at a time. Every process has as many rounds."""

    def __init__(self, n: int, batch_size: int, names: Sequence[str], make: MakeStores, device: torch.device) -> None:
        self.batch_size, self.names, self.make, self.device = batch_size, names, make, device
        self.batches = [own_batches(n, batch_size, process) for process in range(world())]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.stores: Mapping[str, RowStore] = {}
        self.done, self.size = 0, 1  # batches of each process that are done, and those of the next round
        self.failed, self.exceeding = "", set[str]()  # of this process, until the others learn of it

    def next(self) -> list[range] | None:
        """This process's batches of the next round, maybe none; None after the last round."""
        if self.done >= len(self.batches[0]):  # process 0 has the most
            return None
        return self.batches[rank()][self.done : self.done + self.size]

    def agree(self, found: Sequence[Mapping[str, Tensor]], damaged: int | None) -> int | None:
        """The first picture that a process could not read in this round; None if there is none. Makes the stores in the first round.

        found: the features of this process's batches. Every process calls it. Raises StorageFailed and ExceedsDtype on all.
        """
        pictures, shapes = torch.zeros(world(), dtype=torch.int64), torch.zeros(len(self.names), 1 + MOST_AXES).long()
        if damaged is not None:
            pictures[rank()] = damaged + 1
        if found and not self.stores:  # a process without a batch doesn't know the shapes
            for number, name in enumerate(self.names):
                shape = found[0][name].shape[1:]
                shapes[number, : 1 + len(shape)] = torch.tensor([len(shape), *shape])
        told = all_reduce_max(torch.cat([self._flags().long(), pictures, shapes.flatten()]).to(self.device)).cpu()
        flags, pictures, shapes = told.split([1 + len(self.names), world(), shapes.numel()])
        self._raise(flags)
        if bool(pictures.any()):
            return min(number - 1 for number in pictures.tolist() if number)
        if not self.stores:
            rows = shapes.view(len(self.names), -1).tolist()
            self.shapes = {name: tuple(row[1 : 1 + row[0]]) for name, row in zip(self.names, rows, strict=True)}
            self.stores = self.make(self.shapes)
        return None

    def exchange(self, found: Sequence[Mapping[str, Tensor]]) -> None:
        """Store the features of this round's batches of all processes. Every process calls it, after `agree`."""
        parts = [batches[self.done : self.done + self.size] for batches in self.batches]
        for name, store in self.stores.items():
            rows = [batch[name].to(store.dtype) for batch in found]
            if store.checked and any(is_lost(batch[name], part) for batch, part in zip(found, rows, strict=True)):
                self.exceeding.add(name)
            for batches, own in zip(parts, self._gathered(name, rows, store.dtype), strict=True):
                try:
                    if batches and not self.failed:
                        store.put(batches[0].start, own[: batches[-1].stop - batches[0].start])
                except OSError as error:
                    self.failed = failure_words(error)
        self.done += self.size
        numbers = self.batch_size * sum(math.prod(shape) for shape in self.shapes.values())
        self.size = max(1, NUMBERS_AT_ONCE // max(1, numbers * world())) if world() > 1 else 1

    def totals(self, counts: Tensor) -> Tensor:
        """The sum of int32 counts over all processes, after the last round. Raises StorageFailed and ExceedsDtype on all."""
        flags = self._flags()
        told = all_reduce_sum(torch.cat([flags, counts.flatten()]).to(self.device)).cpu()
        self._raise(told[: len(flags)])
        return told[len(flags) :].view(counts.shape)

    def _flags(self) -> Tensor:
        return torch.tensor([bool(self.failed), *(name in self.exceeding for name in self.names)], dtype=torch.int32)

    def _raise(self, flags: Tensor) -> None:
        failed, *exceeding = flags.tolist()
        if failed:
            raise StorageFailed(self.failed or "another process could not write its features")
        if any(exceeding):
            raise ExceedsDtype(tuple(name for name, flag in zip(self.names, exceeding, strict=True) if flag))

    def finish(self) -> dict[str, Tensor]:
        """All rows by name. Every process calls it. Raises StorageFailed."""
        return {name: store.finish() for name, store in self.stores.items()}

    def discard(self) -> None:
        for store in self.stores.values():
            store.discard()

    def _gathered(self, name: str, rows: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The rows of each process in this round, at least as many as it has, of `dtype` on the CPU."""
        if world() == 1:
            return [rows[0].cpu()]  # a round of one process is a batch
        # As many as the process with the most has; the first one always does.
        most = sum(map(len, self.batches[0][self.done : self.done + self.size]))
        room = torch.zeros(most, *self.shapes[name], dtype=dtype, device=self.device)
        start = 0
        for part in rows:
            room[start : start + len(part)] = part
            start += len(part)
        # As bytes, which every backend moves as they are: a sum would turn -0.0 into 0.0.
        every = gather_equal(room.view(len(room), -1).view(torch.uint8))
        return [one.view(dtype).view(room.shape).cpu() for one in every]
