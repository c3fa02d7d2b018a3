"""The stream of batches where each image has become a row of numbers: the same images at the same steps as `stream` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..method import RawBatch
from .batches import INDEX_BLOCK, NO_LABELS, MicroBatches, Share
from .order import Order
from .prefetch import in_blocks

FRACTION = 4  # rows stay on a GPU if they take at most 1 / FRACTION of its free memory


def stream_rows(
    load: Callable[[], Tensor],
    labels: Tensor | None,
    order: Order,
    *,
    steps: int,
    device: torch.device,
    share: Share = Share(),
) -> MicroBatches:
    """`batches(step)` as of `stream`, whose images are rows [n, D] of what `load` gives, float [N, D], row i for image i.

    load: called when the first batch is asked for, so nothing is computed where none is.
    """
    slices = share.slices(order.batch_size)

    def batches(step: int) -> Iterator[list[RawBatch]]:
        rows = _placed(load(), device)
        own = NO_LABELS if labels is None else labels.to(device)
        numbers = order.steps(step, steps, slices)
        for micro in in_blocks(numbers, device, max(1, INDEX_BLOCK // order.batch_size)):
            yield [
                RawBatch(_picked(rows, index), at, own[index] if labels is not None else own, {}, index)
                for index, at in micro
            ]

    return batches


def _placed(rows: Tensor, device: torch.device) -> Tensor:
    """The rows on the device, or where they are if it has no room for them."""
    if device.type == "cuda" and FRACTION * rows.nbytes > torch.cuda.mem_get_info(device)[0]:
        return rows
    return rows.to(device)


def _picked(rows: Tensor, index: Tensor) -> Tensor:
    return rows.index_select(0, index.to(rows.device)).to(index.device)
