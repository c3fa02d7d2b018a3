"""The endless, seekable order of one set: which image, under which global position, is sample k of a step.

Everything is a function of the step: no sampler state, no array of the set's length. It is computed on the host, in numpy, for
many steps at a time: a step's own share of that work is a few microseconds.
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

# Indices that one call of the permutation computes ahead: 32 KiB of them.
AHEAD = 4096


class Shuffle(Protocol):
    """A bijection of 0..n-1 for each epoch: place in the epoch -> image. `name` is the stream of set and epoch."""

    def images(self, seed: int, name: str, n: int, places: Indices) -> Indices: ...


@dataclass(frozen=True)
class Full:
    """Any image anywhere: a keyed permutation of the whole set."""

    def images(self, seed: int, name: str, n: int, places: Indices) -> Indices:
        return permute_array(seed, name, n, places)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A shuffle that reads runs of neighbours, for tar shards, spinning disks and file systems far away.

    Each epoch turns the storage order by a random offset (the set is a ring), cuts it into runs of `size` consecutive images,
    permutes the runs, and shuffles all images of `mix` runs, a group, together. What a last, shorter run would hold joins the
    last group; groups share out the runs evenly, so none has fewer than `mix` where the set has so many.

    Locality: a group has at most mix + ceil(mix / groups) runs and the short one, and any size * mix consecutive samples of an
    epoch lie in at most two groups; a run lies in at most two shards of `size` images or more. So at a time 2 * mix + 3 runs are
    open (of sets of mix^2 runs or more; never over 3 * mix + 1). Because the offset is uniform, so is the place of every image in
    the epoch: none is left out at its end more often than another.
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
        # Group g holds the runs from g * runs // groups on; this is that formula turned around.
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


SHUFFLES: Mapping[str, Callable[..., Shuffle]] = {"full": Full, "blocks": Blocks}


@dataclass(frozen=True)
class Order:
    """The order of one set: which image, under which global position, is sample k of a step.

    n: images. batch_size: the global batch. name: the set's stream ("source", "target"; "" for a single set). shuffle: how
    an epoch is ordered. A batch never holds an image twice; an epoch leaves out n % batch_size images, others each time.
    """

    n: int
    batch_size: int
    seed: int
    name: str = ""
    shuffle: Shuffle = Full()

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
        return torch.from_numpy(self._images(epoch, self._rows(rows) + i * self.batch_size))

    def positions(self, step: int, rows: slice = slice(None)) -> Tensor:
        """The global positions of a step's rows, int64 [len(rows)]."""
        return torch.from_numpy(self._rows(rows) + step * self.batch_size)

    def steps(
        self, start: int, stop: int, slices: Sequence[slice] = (slice(None),)
    ) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """For each step from start to stop - 1, `(indices, positions)` of each slice of its batch, int64 [len(slice)] each.

        The tensors are views into those of up to AHEAD samples; clone what is kept for long or sent elsewhere.
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
        return self.shuffle.images(self.seed, f"{self.name}/order/{epoch}", self.n, places)


def straddling(seed: int, name: str, n: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """The places of each step's batch among n, int64 [batch_size]: a new order each epoch, and no batch smaller at its end.

    For what trains on features in memory; unlike `Order`'s, a batch may reach into the next epoch.
    """
    for step in range(steps):
        seen = torch.arange(step * batch_size, (step + 1) * batch_size)
        epochs = range(int(seen[0]) // n, int(seen[-1]) // n + 1)
        yield torch.cat([permute(seed, f"{name}/{e}", n, seen[seen // n == e] % n) for e in epochs])
