"""The order of one set: which image is sample k of a step, and what its global position is.

Both are functions of the step, so a run can start at any step without sampler state, and no array as long as the set is kept.
numpy computes many steps at once on the host, which costs a few microseconds a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..draws import Indices, permute, permute_array, stream_key
from ..errors import UserError

# Indices that one call of the permutation computes ahead: 32 KiB.
AHEAD = 4096


class Shuffle(Protocol):
    """A permutation of 0..n-1 for each epoch: place in the epoch -> image. `name` is the draw stream of the set and the epoch."""

    def images(self, seed: int, name: str, n: int, places: Indices) -> Indices: ...


@dataclass(frozen=True)
class Full:
    """A random permutation of the whole set."""

    def images(self, seed: int, name: str, n: int, places: Indices) -> Indices:
        return permute_array(seed, name, n, places)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A shuffle within runs of neighbouring images, for tar shards, spinning disks and network file systems.

    Each epoch rotates the storage order by a random offset, cuts it into runs of `size` consecutive images, permutes the runs,
    and shuffles together all images of a group of `mix` runs. A shorter run at the end joins the last group. Runs are divided
    evenly among groups, so each group has at least `mix` runs if the set has that many.

    Locality: a group has at most mix + ceil(mix / groups) runs and the shorter one, and any size * mix consecutive samples of an
    epoch lie in at most two groups; a run lies in at most two shards of `size` images or more. So at most 2 * mix + 3 runs are
    read from at a time (in sets of mix^2 runs or more; never more than 3 * mix + 1). The uniform offset makes the place of
    every image in the epoch uniform too, so no image is left out at the end of an epoch more often than another.

    size: Length of a run in images, 1 or more; longer runs make reading more sequential.
    mix: Number of runs whose images are shuffled together, 1 or more; more runs shuffle better and keep more files open.

    Raises UserError for a number below 1.
    """

    size: int = 256
    mix: int = 16

    def __post_init__(self) -> None:
        for key, value in (("size", self.size), ("mix", self.mix)):
            if value < 1:
                raise UserError(f"data.shuffle.{key}: {value} is given; expected at least 1")

    def images(self, seed: int, name: str, n: int, places: Indices) -> Indices:
        size = min(self.size, n)
        runs = n // size
        groups = max(1, runs // self.mix)
        # Group g starts at run g * runs // groups; this is the inverse of that formula.
        group = ((np.minimum(places // size, runs - 1) + 1) * groups - 1) // runs
        turned = np.empty_like(places)
        for g in np.unique(group).tolist():
            first, end = g * runs // groups, (g + 1) * runs // groups
            count = (end - first) * size if g < groups - 1 else n - first * size
            here = group == g
            slot = permute_array(seed, f"{name}/group{g}", count, places[here] - first * size)
            turned[here] = slot + first * size
        whole = turned < runs * size  # the short run stays at the end
        run, offset = np.divmod(turned[whole], size)
        turned[whole] = permute_array(seed, f"{name}/runs", runs, run) * size + offset
        turn = ((stream_key(seed, f"{name}/turn") & 0xFFFFFFFFFFFFFFFF) * n) >> 64
        return (turned + turn) % n


@dataclass(frozen=True)
class Given:
    """One order for all epochs: order[place] is the image, each once."""

    order: Indices

    def images(self, seed: int, name: str, n: int, places: Indices) -> Indices:
        return self.order[places]


SHUFFLES: Mapping[str, Callable[..., Shuffle]] = {"full": Full, "blocks": Blocks}


@dataclass(frozen=True)
class Order:
    """The order of one set: which image is sample k of a step, and what its global position is.

    n: number of images. batch_size: the global batch. name: the set's draw stream ("source", "target"; "" for a single set).
    shuffle: the order within an epoch. A batch never holds an image twice; an epoch leaves out n % batch_size images, different
    ones each time. whole: whether an epoch holds every image: its last batch is filled up with the first images of the epoch.
    """

    n: int
    batch_size: int
    seed: int
    name: str = ""
    shuffle: Shuffle = Full()
    whole: bool = False

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
        return -(-self.n // self.batch_size) if self.whole else self.n // self.batch_size

    def indices(self, step: int, rows: slice = slice(None)) -> Tensor:
        """The images of a step's rows, int64 [len(rows)]."""
        epoch, i = divmod(step, self.steps_per_epoch)
        return torch.from_numpy(self._images(epoch, self._rows(rows) + i * self.batch_size))

    def images_of(self, epoch: int) -> Tensor:
        """The image at each place of an epoch, int64 [n]."""
        return torch.from_numpy(self._images(epoch, np.arange(self.n, dtype=np.int64)))

    def positions(self, step: int, rows: slice = slice(None)) -> Tensor:
        """The global positions of a step's rows, int64 [len(rows)]."""
        return torch.from_numpy(self._rows(rows) + step * self.batch_size)

    def steps(
        self, start: int, stop: int, slices: Sequence[slice] = (slice(None),)
    ) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """For each step from start to stop - 1, `(indices, positions)` of each slice of its batch, int64 [len(slice)] each.

        The tensors are views into larger ones of up to AHEAD samples; clone what you keep for long or send elsewhere.
        """
        parts = [self._rows(rows) for rows in slices]
        rows, sizes = np.concatenate(parts), [len(part) for part in parts]
        ahead = max(1, AHEAD // max(1, len(rows)))
        while start < stop:
            epoch, i = divmod(start, self.steps_per_epoch)
            count = min(ahead, stop - start, self.steps_per_epoch - i)
            places = rows + (np.arange(i, i + count) * self.batch_size)[:, None]
            images = torch.from_numpy(self._images(epoch, places.ravel())).view(places.shape)
            positions = torch.from_numpy(places + epoch * self.steps_per_epoch * self.batch_size)
            # [steps, rows] -> one tuple of steps for each slice, made by torch at once.
            columns = [
                zip(index.unbind(), position.unbind(), strict=True)
                for index, position in zip(images.split(sizes, 1), positions.split(sizes, 1), strict=True)
            ]
            yield from map(list, zip(*columns, strict=True))
            start += count

    def _rows(self, rows: slice) -> Indices:
        return np.arange(*rows.indices(self.batch_size), dtype=np.int64)

    def _images(self, epoch: int, places: Indices) -> Indices:
        return self.shuffle.images(self.seed, f"{self.name}/order/{epoch}", self.n, places % self.n)


def straddling(seed: int, name: str, n: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Batches of indices into n samples, int64 [batch_size] for each step, in a new order each epoch.

    For training on features in memory. Unlike in `Order`, a batch may reach into the next epoch, so all batches are full and no
    sample is left out.
    """
    for step in range(steps):
        seen = torch.arange(step * batch_size, (step + 1) * batch_size)
        epochs = range(int(seen[0]) // n, int(seen[-1]) // n + 1)
        yield torch.cat([permute(seed, f"{name}/{e}", n, seen[seen // n == e] % n) for e in epochs])
