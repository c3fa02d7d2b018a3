"""The endless, seekable order of global batches, and the loaders that read it.

The order is a function of the step alone: no sampler state, no counters. Process r of W reads its slice of each global batch and
micro-batches are slices of that slice, so any number of processes, micro-batches and workers sees the same global batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .damage import Damage, read_or_neighbour
from .draws import Draws, permute
from .errors import UserError
from .images.source import Images
from .views import stack_pictures
from .workers import at_most_cores, begin


class Sample(NamedTuple):
    """Raw images, as the stream yields them on the device."""

    images: Tensor  # uint8 or uint16 [N, C, H, W]; [N, V, C, h, w] where a worker cropped V views
    positions: Tensor  # int64 [N]: global positions, the key of all randomness
    labels: Tensor  # int64 [N]; empty where there is none or it must not be seen
    extra: Mapping[str, Tensor] = {}


class PairSample(NamedTuple):
    """A labelled source batch and a target batch whose labels are always empty."""

    source: Sample
    target: Sample


class Views(NamedTuple):
    """V augmented views of the same N images: float [V, N, C, h, w]."""

    images: Tensor
    draws: Draws


class Labelled(NamedTuple):
    images: Tensor  # float [N, C, h, w]
    labels: Tensor  # int64 [N]
    draws: Draws


class Unlabelled(NamedTuple):
    images: Tensor  # float [N, C, h, w]
    draws: Draws


class Pair(NamedTuple):
    """What an adaptation method sees: there is no field for a target label."""

    source: Labelled
    target: Unlabelled


class Crop(Protocol):
    """What a worker does to one decoded picture: uint8 [1, C, H, W] and its draws -> uint8 [1, V, C, h, w]."""

    def __call__(self, images: Tensor, draws: Draws, /) -> Tensor: ...


NO_LABELS = torch.empty(0, dtype=torch.int64)
Batches = Callable[[int], Iterator[list[Any]]]


@dataclass(frozen=True)
class Order:
    """The order of one set: which image, under which global position, is sample k of a step.

    n: images. batch_size: the global batch. name: the set's stream ("source", "target"; "" for a single set).
    A batch never holds an image twice; an epoch leaves out n % batch_size images, others each time.
    """

    n: int
    batch_size: int
    seed: int
    name: str = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"optim.batch_size: {self.batch_size} is given; expected at least 1")
        if self.batch_size > self.n:
            which = f" of data.{self.name}" if self.name else ""
            raise UserError(
                f"optim.batch_size: {self.batch_size} is larger than the {self.n} training images{which}; "
                f"choose at most {self.n} or give more images"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.n // self.batch_size

    def indices(self, step: int, rows: slice = slice(None)) -> Tensor:
        """The images of a step's rows, int64 [len(rows)]."""
        epoch, i = divmod(step, self.steps_per_epoch)
        index = torch.arange(self.batch_size)[rows] + i * self.batch_size
        return permute(self.seed, f"{self.name}/order/{epoch}", self.n, index)

    def positions(self, step: int, rows: slice = slice(None)) -> Tensor:
        """The global positions of a step's rows, int64 [len(rows)]."""
        return torch.arange(self.batch_size)[rows] + step * self.batch_size


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


class _Read(NamedTuple):
    """One cropped picture on its way from a worker."""

    crops: Tensor  # uint8 or uint16 [V, C, h, w]
    position: int
    wanted: int
    read: int


class _Reader(Dataset[_Read | str]):
    """Decode and crop one (index, position): a pure function, so the number of workers cannot matter."""

    def __init__(self, images: Images, crop: Crop, seed: int, name: str) -> None:
        self.images, self.crop, self.seed, self.name = images, crop, seed, name

    def __getitem__(self, key: tuple[int, int]) -> _Read | str:
        wanted, position = key
        try:
            picture, read = read_or_neighbour(self.images, wanted)
        except UserError as error:
            return str(error)  # an exception leaves a worker as the text of a traceback; this stays one sentence
        draws = source_draws(self.seed, torch.tensor([position]), self.name)
        return _Read(self.crop(picture[None], draws)[0], position, wanted, read)


def _collate(items: Sequence[_Read | str]) -> tuple[Tensor, Tensor, Tensor, Tensor] | str:
    """(crops, positions, wanted, read) of a micro-batch, or the first error in it."""
    found = []
    for item in items:
        if isinstance(item, str):
            return item
        found.append(item)
    crops, *numbers = zip(*found, strict=True)
    positions, wanted, read = (torch.tensor(column) for column in numbers)
    return stack_pictures(crops), positions, wanted, read


def source_draws(seed: int, positions: Tensor, name: str) -> Draws:
    """The draws of a set's samples: under its own stream where there are several sets."""
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
) -> Batches:
    """`batches(step)`: from that step to the last, this process's list of micro-batches of Sample.

    Sets held in memory are indexed on the device; others are decoded and cropped by `workers` processes. Labels are the set's
    own, empty where it has none.
    """
    slices = share.slices(order.batch_size)
    resident = images.resident()
    if resident is not None:
        data = resident.to(device)
        labels = (images.labels if images.labels is not None else NO_LABELS).to(device)

        def indexed(step: int) -> Iterator[list[Sample]]:
            for s in range(step, steps):
                yield [_indexed(data, labels, order, s, rows, device) for rows in slices]

        return indexed
    return _loaded(images, order, crop, slices, steps, device, workers, damage or Damage())


def _indexed(data: Tensor, labels: Tensor, order: Order, step: int, rows: slice, device: torch.device) -> Sample:
    index = order.indices(step, rows).to(device)
    return Sample(data[index], order.positions(step, rows).to(device), labels[index] if len(labels) else labels)


def _loaded(
    images: Images,
    order: Order,
    crop: Crop,
    slices: list[slice],
    steps: int,
    device: torch.device,
    workers: int,
    damage: Damage,
) -> Batches:
    reader = _Reader(images, crop, order.seed, order.name)
    workers = at_most_cores(workers)

    def loaded(step: int) -> Iterator[list[Sample]]:
        keys = (
            list(zip(order.indices(s, rows).tolist(), order.positions(s, rows).tolist(), strict=True))
            for s in range(step, steps)
            for rows in slices
        )
        loader = DataLoader(
            reader,
            batch_sampler=keys,  # pyright: ignore[reportArgumentType]
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=begin if workers else None,
            generator=torch.Generator(),  # without one it would draw from the global stream
        )
        micro: list[Sample] = []
        for batch in loader:
            if isinstance(batch, str):
                raise UserError(batch)
            crops, positions, wanted, read = batch
            damage.note(images, wanted, read)
            labels = images.labels[read] if images.labels is not None else NO_LABELS
            crops, positions, labels = (t.to(device, non_blocking=True) for t in (crops, positions, labels))
            micro.append(Sample(crops, positions, labels))
            if len(micro) == len(slices):
                yield micro
                micro = []

    return loaded


def pairs(source: Batches, target: Batches) -> Batches:
    """Zip a source and a target stream into PairSample micro-batches."""

    def zipped(step: int) -> Iterator[list[PairSample]]:
        for s, t in zip(source(step), target(step), strict=True):
            yield [PairSample(a, b) for a, b in zip(s, t, strict=True)]

    return zipped
