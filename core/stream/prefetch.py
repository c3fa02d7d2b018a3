"""Prefetching to the device: a thread gathers batches and a side stream copies them, a few ahead of the current step.

On the CPU batches pass through unchanged. Nothing here waits for the device: copies are ordered by events.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..method import RawBatch

Item = TypeVar("Item")
DEPTH = 2
"""Batches ahead of the current one: one that is complete and one that is being copied."""


def in_thread(source: Generator[Item], depth: int = DEPTH) -> Generator[Item]:
    """The items of `source`, produced by a thread that is at most `depth` items ahead.

    An exception of `source` is raised here, after the items before it. Closing ends the thread and closes `source`.
    """
    made: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    room, closing = threading.Semaphore(depth), threading.Event()

    def work() -> None:
        try:
            room.acquire()
            for item in source:
                made.put((True, item))
                room.acquire()  # before the next item is begun, so that never more than `depth` exist
                if closing.is_set():
                    return
            made.put((False, None))
        except BaseException as error:
            made.put((False, error))
        finally:
            source.close()

    thread = threading.Thread(target=work, name="rootstock-gather", daemon=True)
    thread.start()
    try:
        while True:
            going, item = made.get()
            if not going:
                if item is not None:
                    raise item
                return
            room.release()
            yield item
            del item  # so that it isn't kept while this waits for the next item
    finally:
        closing.set()
        room.release()
        thread.join()


def to_device(source: Generator[list[RawBatch]], device: torch.device, depth: int = DEPTH) -> Generator[list[RawBatch]]:
    """The micro-batches of each step on `device`; `depth` steps beyond the current one are copied ahead.

    source: micro-batches on the host, in page-locked memory if the device is a GPU.
    """
    if device.type != "cuda":
        yield from source
        return
    side = torch.cuda.Stream(device)
    waiting: deque[tuple[list[RawBatch], torch.cuda.Event]] = deque()
    try:
        for micro in source:
            with torch.cuda.stream(side):
                sent = [_sent(sample, device) for sample in micro]
            ready = torch.cuda.Event()
            ready.record(side)
            waiting.append((sent, ready))
            del micro, sent  # so that page-locked memory is free as soon as it is copied
            if len(waiting) > depth:
                yield _arrived(*waiting.popleft(), device)
        while waiting:
            yield _arrived(*waiting.popleft(), device)
    finally:
        source.close()


def _sent(sample: RawBatch, device: torch.device) -> RawBatch:
    def send(value: Tensor) -> Tensor:
        return value.to(device, non_blocking=True)

    extra = {name: send(value) for name, value in sample.extra.items()}
    return RawBatch(send(sample.images), send(sample.positions), send(sample.labels), extra, send(sample.index))


def _arrived(micro: list[RawBatch], ready: torch.cuda.Event, device: torch.device) -> list[RawBatch]:
    """The step's samples, safe to use on the current stream: the stream waits for the copies, this process doesn't."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(ready)
    for sample in micro:
        for value in (sample.images, sample.positions, sample.labels, sample.index, *sample.extra.values()):
            # They were allocated on the side stream, which must not reuse their memory before the current stream has finished with it.
            value.record_stream(stream)
    return micro


def in_blocks(
    source: Iterator[list[tuple[Tensor, Tensor]]], device: torch.device, block: int
) -> Generator[list[tuple[Tensor, Tensor]]]:
    """The (indices, positions) of each step on `device`, int64, sent for `block` steps at once.

    A copy costs the same few microseconds however short it is, so they aren't sent step by step.
    """
    if device.type != "cuda":
        yield from source
        return
    while steps := list(islice(source, block)):
        yield from unpack_indices(pack_indices(steps).pin_memory().to(device, non_blocking=True), steps)


def pack_indices(steps: list[list[tuple[Tensor, Tensor]]]) -> Tensor:
    """Concatenate the pairs of all steps, int64 [2, K]."""
    pairs = [pair for step in steps for pair in step]
    return torch.stack([torch.cat([pair[k] for pair in pairs]) for k in range(2)])


def unpack_indices(numbers: Tensor, steps: list[list[tuple[Tensor, Tensor]]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Split `numbers` into the pairs of `steps`, as views."""
    start = 0
    for step in steps:
        cut = []
        for index, _ in step:
            stop = start + len(index)
            cut.append((numbers[0, start:stop], numbers[1, start:stop]))
            start = stop
        yield cut
