"""The stream of batches where each image has become a row of numbers: the same images at the same steps as `stream` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..method import RawBatch
from .batches import INDEX_BLOCK, NO_LABELS, MicroBatches, Share
from .order import Order
from .prefetch import in_blocks

FRACTION = 4  # rows stay on a GPU if they take at most 1 / FRACTION of its free memory


class KeptRows(NamedTuple):
    """Numbers of the N images of a set.

    numbers: float [M, ...], on the CPU, maybe mapped from a file. read: int64 [N], the image that is shown in the place of each, since it
    can be read; row: int64 [N], where its numbers are. None where each image has its own row.
    """

    numbers: Tensor
    read: Tensor | None = None
    row: Tensor | None = None


def stream_rows(
    load: Callable[[], KeptRows],
    labels: Tensor | None,
    order: Order,
    *,
    steps: int,
    device: torch.device,
    share: Share = Share(),
    note: Callable[[Tensor, Tensor], None] = lambda wanted, read: None,
) -> MicroBatches:
    """`batches(step)` as of `stream`, whose images are the rows that `load` gives, [n, ...]. Labels are of the images that were read.

    load: called when the first batch is asked for, so nothing is computed where none is. note: called with (wanted, read), int64 [n] each,
    for batches of a set in which images are replaced.
    """
    slices = share.slices(order.batch_size)

    def batches(step: int) -> Iterator[list[RawBatch]]:
        loaded = load()
        numbers = _placed(loaded.numbers, device)
        own = NO_LABELS if labels is None else labels if loaded.read is None else labels[loaded.read]
        own, row = own.to(device), None if loaded.row is None else loaded.row.to(device)
        indices = order.steps(step, steps, slices)
        for micro in in_blocks(indices, device, max(1, INDEX_BLOCK // order.batch_size)):
            found = list[RawBatch]()
            for index, at in micro:
                if loaded.read is not None:
                    wanted = index.cpu()
                    note(wanted, loaded.read[wanted])
                picked = _picked(numbers, index if row is None else row[index])
                found.append(RawBatch(picked, at, own[index] if labels is not None else own, {}, index))
            yield found

    return batches


def _placed(rows: Tensor, device: torch.device) -> Tensor:
    """The rows on the device, or where they are if it has no room for them."""
    if device.type == "cuda" and FRACTION * rows.nbytes > torch.cuda.mem_get_info(device)[0]:
        return rows
    return rows.to(device)


def _picked(rows: Tensor, index: Tensor) -> Tensor:
    return rows.index_select(0, index.to(rows.device)).to(index.device)
