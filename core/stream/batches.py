"""The stream of batches: for each step the micro-batches of this process, on the device.

The order is a function of the step (core/stream/order.py), without sampler state or counters. Process r of W reads its slice of each
global batch, and micro-batches are slices of that slice, so global batches don't depend on the number of processes, micro-batches
and workers. Data comes in one of three ways, which give the same views of the same positions, bit for bit:

    resident   images of one shape are kept on the device; a batch is an index into them
    gathered   images of one shape are copied from memory or a memory-mapped file to the device, and cropped there
    loaded     all other images are decoded and cropped by worker processes, and the crops are copied to the device; decoded images stay in
               memory as far as there is room for them
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from ..images.damage import Damage, read_scaled_or_neighbour, rows_or_neighbours
from ..images.open import Images
from ..method import RawBatch, RawPair
from .decoded import DecodedPictures, room_for_decoded
from .loader import join_parts, read_in_workers
from .order import Order
from .prefetch import in_blocks, in_thread, to_device
from .workers import at_most_cores

Resident = Literal["auto", "on", "off"]
Decode = Literal["full", "scaled"]
NO_LABELS = torch.empty(0, dtype=torch.int64)
MicroBatches = Callable[[int], Iterator[list[Any]]]
INDEX_BLOCK = 8192  # indices sent to the device at once
COPY_BLOCK = 1 << 28  # bytes of a set that are copied to the device at once
CROP_BLOCK = 1 << 25  # bytes of decoded images that a worker collects before it crops them


class Crop(Protocol):
    """How a worker crops decoded images [C, H, W] with their draws: uint8 {"images": [N, V, C, h, w], ...}.

    With decode=scaled, `scale` chooses the s at which to decode an image of a given full size (at 1 / s of its sides), and
    `crop_each` also gets the full sizes.
    """

    def crop_each(
        self, pictures: Sequence[Tensor], draws: Draws, sizes: Sequence[tuple[int, int]] | None = None, /
    ) -> dict[str, Tensor]: ...

    def scale(self, draws: Draws, height: int, width: int, /) -> int: ...


@dataclass(frozen=True)
class Share:
    """This process's part of each global batch: process `rank` of `world`, in `micro` equal micro-batches."""

    rank: int = 0
    world: int = 1
    micro: int = 1

    def slices(self, batch_size: int) -> list[slice]:
        parts = self.world * self.micro
        if batch_size % parts:
            raise UserError(
                f"optim.batch_size: {batch_size} does not divide into {self.world} processes x {self.micro} micro-batches "
                f"(run.accumulate); choose a multiple of {parts}"
            )
        size = batch_size // parts
        return [
            slice((self.rank * self.micro + m) * size, (self.rank * self.micro + m + 1) * size)
            for m in range(self.micro)
        ]


def source_draws(seed: int, positions: Tensor, name: str) -> Draws:
    """The draws of a set's samples; each of several sets has its own stream, called `name`."""
    draws = Draws(seed, positions)
    return draws.stream(name) if name else draws


def stream(
    images: Images,
    order: Order,
    crop: Crop,
    *,
    steps: int,
    device: torch.device,
    share: Share = Share(),
    workers: int = 0,
    damage: Damage | None = None,
    resident: Resident = "auto",
    decode: Decode = "full",
    decoded_cache: int = 0,
) -> MicroBatches:
    """`batches(step)`: this process's list of micro-batches (RawBatch) of every step, from the given one to the last.

    Images of one shape that need no decoding come uncropped; others are decoded and cropped by `workers` processes. Labels are
    those of the set, empty if it has none.

    resident: whether images of the first kind are copied to the device; auto copies them to a GPU if they take at most a
        quarter of its free memory. Raises UserError if `on` is not possible.
    decode: full, or scaled: large JPEGs are decoded only as large as their crops need. Faster, with the same crop boxes, but
        slightly different pixels.
    decoded_cache: bytes of decoded images that the loading processes may keep together; for decode=full.
    """
    slices = share.slices(order.batch_size)
    damage = damage or Damage()
    if _to_reside(images, device, resident):
        pixels, labels = _copied(images, device, damage)

        def indexed(step: int) -> Generator[list[RawBatch]]:
            numbers = order.steps(step, steps, slices)
            for micro in in_blocks(numbers, device, max(1, INDEX_BLOCK // order.batch_size)):
                yield [RawBatch(_picked(pixels, index), at, _of(labels, index), {}, index) for index, at in micro]

        return indexed
    pinned = device.type == "cuda"
    if images.uniform() is None:
        decoded = DecodedPictures(images, room_for_decoded(decoded_cache, at_most_cores(workers)))
        reader = _Reader(decoded, crop, order.seed, order.name, decode)
        return lambda step: to_device(
            _loaded(reader, order, slices, range(step, steps), workers, damage, pinned), device
        )

    def gathered(step: int) -> Generator[list[RawBatch]]:
        source = _gathered(images, order, slices, range(step, steps), damage, pinned)
        return to_device(in_thread(source) if pinned else source, device)

    return gathered


def _to_reside(images: Images, device: torch.device, resident: Resident) -> bool:
    """Whether to copy the set to the device."""
    uniform = images.uniform()
    if resident == "on" and uniform is None:
        raise UserError(
            f"run.resident: on is given, but the pictures of {images.uri} differ in size or have to be decoded; "
            "use run.resident=auto, or pack them by `rootstock data URI --pack OUT --format raw`"
        )
    if uniform is None or resident == "off" or (resident == "auto" and device.type != "cuda"):
        return False
    if device.type != "cuda":
        return True
    size = len(images) * int(np.prod(uniform.shape)) * uniform.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(device)
    if resident == "on" and size > free:
        raise UserError(
            f"run.resident: on is given, but {images.uri} takes {size / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free; "
            "use run.resident=auto"
        )
    return resident == "on" or 4 * size <= free


def _copied(images: Images, device: torch.device, damage: Damage) -> tuple[Tensor, Tensor]:
    """Copy all images and their labels to the device, block by block, so that the host never holds the set twice."""
    uniform = images.uniform()
    assert uniform is not None
    pixels = torch.empty(len(images), *uniform.shape, dtype=uniform.dtype, device=device)
    block = max(1, COPY_BLOCK // (pixels[0].nbytes or 1))
    numbers = []
    for wanted in torch.arange(len(images)).split(block):
        rows, read = rows_or_neighbours(images, wanted)
        damage.note(images, wanted, read)
        pixels[int(wanted[0]) : int(wanted[-1]) + 1].copy_(rows)
        numbers.append(read)
    return pixels, _labels(images, torch.cat(numbers)).to(device)


def _labels(images: Images, read: Tensor) -> Tensor:
    return images.labels[read] if images.labels is not None else NO_LABELS


def _of(labels: Tensor, index: Tensor) -> Tensor:
    return labels[index] if len(labels) else labels


def _picked(pixels: Tensor, index: Tensor) -> Tensor:
    """pixels[index]; torch has no index_select of uint16, so those are viewed as int16."""
    if pixels.dtype == torch.uint16:
        return pixels.view(torch.int16).index_select(0, index).view(torch.uint16)
    return pixels.index_select(0, index)


def _gathered(
    images: Images, order: Order, slices: list[slice], steps: range, damage: Damage, pinned: bool
) -> Generator[list[RawBatch]]:
    """Uncropped samples on the host, from memory or a memory-mapped file."""
    for numbers in order.steps(steps.start, steps.stop, slices):
        micro = []
        for wanted, positions in numbers:
            pixels, read = rows_or_neighbours(images, wanted)
            damage.note(images, wanted, read)
            sample = RawBatch(pixels, positions, _labels(images, read), {}, wanted)
            micro.append(_pinned(sample) if pinned else sample)
        yield micro


def _loaded(
    reader: _Reader,
    order: Order,
    slices: list[slice],
    steps: range,
    workers: int,
    damage: Damage,
    pinned: bool,
) -> Generator[list[RawBatch]]:
    """Cropped samples on the host, from worker processes."""
    columns = (
        (wanted.numpy(), positions.numpy())
        for numbers in order.steps(steps.start, steps.stop, slices)
        for wanted, positions in numbers
    )
    images = reader.images
    micro: list[RawBatch] = []
    found = read_in_workers(reader, columns, workers=workers, micro=len(slices), pinned=pinned)
    try:
        for crops in found:
            wanted, read, positions = (crops.pop(name) for name in ("wanted", "read", "positions"))
            damage.note(images, wanted, read)
            labels = _labels(images, read)
            labels = labels.pin_memory() if pinned and len(labels) else labels
            micro.append(RawBatch(crops.pop("images"), positions, labels, crops, wanted))
            if len(micro) == len(slices):
                yield micro
                micro = []
    finally:
        found.close()


def _pinned(sample: RawBatch) -> RawBatch:
    images, positions, labels = (value.pin_memory() for value in sample[:3])
    return RawBatch(images, positions, labels, {}, sample.index.pin_memory())


class _Reader:
    """Decodes and crops. Each row depends only on its own (index, position), so the number of workers doesn't matter."""

    def __init__(self, decoded: DecodedPictures, crop: Crop, seed: int, name: str, decode: Decode) -> None:
        self.decoded, self.images, self.crop = decoded, decoded.images, crop
        self.seed, self.name, self.decode = seed, name, decode

    def __call__(self, wanted: np.ndarray, positions: np.ndarray) -> dict[str, Tensor]:
        """wanted, positions: int64 [n] -> the crops, "wanted", "positions", and "read": the indices that were read, int64 [n]."""
        read: list[int] = []
        groups = list(self._groups(wanted, positions, read))
        crops = dict(groups[0]) if len(groups) == 1 else join_parts(iter(groups), len(wanted))
        numbers = {"wanted": wanted, "positions": positions, "read": np.array(read)}
        return {**crops, **{name: torch.from_numpy(number) for name, number in numbers.items()}}

    def _groups(self, wanted: np.ndarray, positions: np.ndarray, read: list[int]) -> Iterator[dict[str, Tensor]]:
        """Crops of groups of images, each of about CROP_BLOCK bytes; appends the indices that were read to `read`."""
        pictures: list[Tensor] = []
        sizes: list[tuple[int, int]] = []
        taken, first = 0, 0
        for row, index in enumerate(wanted.tolist(), 1):
            if self.decode == "scaled":
                scale = partial(self.crop.scale, self._draws(positions[row - 1 : row]))
                picture, size, number = read_scaled_or_neighbour(self.images, index, scale)
                sizes.append(size)
            else:
                picture, number = self.decoded.read(index)
            pictures.append(picture)
            read.append(number)
            taken += picture.nbytes
            if row == len(wanted) or taken >= CROP_BLOCK:
                yield self.crop.crop_each(pictures, self._draws(positions[first:row]), sizes or None)
                pictures, sizes, taken, first = [], [], 0, row

    def _draws(self, positions: np.ndarray) -> Draws:
        return source_draws(self.seed, torch.from_numpy(positions), self.name)


def zip_pairs(source: MicroBatches, target: MicroBatches) -> MicroBatches:
    """Zip a source and a target stream into micro-batches of RawPair."""

    def zipped(step: int) -> Iterator[list[RawPair]]:
        for s, t in zip(source(step), target(step), strict=True):
            yield [RawPair(a, b) for a, b in zip(s, t, strict=True)]

    return zipped
