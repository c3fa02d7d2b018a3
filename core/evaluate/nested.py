"""A mean over training seeds, tasks and test images, and how sure it is: test images are drawn within seeds, whole clusters at a time.

Seeds, and what a seed's images add to its own value, vary beside the images. The spread over seeds enters as Student's t
(`seeds_and_images_interval`): drawing three seeds with replacement would make their interval far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .counts import Floats, Ints
from .intervals import ANY, ValueRange
from .statistics import (
    RESAMPLES,
    Interval,
    cluster_numbers,
    drawn_weights,
    seeds_and_images_interval,
    seeds_and_images_p,
)


class ImageScores(NamedTuple):
    """One training's score of each test image. values: [M], such as 1 for a right answer; drawn: [M], which cluster an image is of."""

    values: Floats
    drawn: Ints


class Nested(NamedTuple):
    """values: [S], of each seed. draws: [B], the mean over seeds on resampled test images. clusters: how many were drawn from."""

    values: tuple[float, ...]
    draws: Floats
    clusters: int

    def interval(self, *, seed: int = 0, level: float = 0.95, span: ValueRange = ANY) -> Interval:
        """Of the mean over seeds and images; it never leaves `span`."""
        return seeds_and_images_interval(self.values, self.draws, seed=seed, level=level, span=span)

    def p(self, null: float = 0.0) -> float:
        """Two-sided p of "the mean is `null`"."""
        return seeds_and_images_p([value - null for value in self.values], self.draws - null, self.clusters)


def nested(trainings: Sequence[Sequence[ImageScores]], *, seed: int, resamples: int = RESAMPLES) -> Nested:
    """The mean over seeds of the mean over tasks of the mean over images. trainings: [S][T], the T tasks of each seed.

    Trainings that were tested on the same clusters, in other seeds or tasks, share the draws, as tasks with the same target do; others
    draw their own. A cluster with several images counts with all of them. Raises ValueError unless all seeds have as many tasks.
    """
    if not trainings or not trainings[0] or len({len(tasks) for tasks in trainings}) > 1:
        raise ValueError("needs at least one seed and task, and as many tasks of each seed")
    each = [[float(np.mean(one.values)) for one in tasks] for tasks in trainings]
    sets: dict[bytes, list[tuple[Floats, Floats]]] = {}
    for one in (one for tasks in trainings for one in tasks):
        known = np.unique(one.drawn)
        member, _ = cluster_numbers(one.drawn)
        hits: Floats = np.bincount(member, one.values).astype(np.float64)
        sets.setdefault(known.tobytes(), []).append((hits, np.bincount(member).astype(np.float64)))
    draws, clusters = np.zeros(resamples), 0
    for number, parts in enumerate(sets.values()):
        sums, sizes = (np.stack(column, axis=1) for column in zip(*parts, strict=True))
        count = len(sums)
        shares = [((w @ sums) / (w @ sizes)).sum(axis=1) for w in drawn_weights(count, resamples, seed + number)]
        draws += np.concatenate(shares)
        clusters += count
    return Nested(tuple(float(np.mean(tasks)) for tasks in each), draws / sum(map(len, each)), clusters)


def paired_scores(first: ImageScores, second: ImageScores) -> ImageScores:
    """first - second, image by image. Raises ValueError unless both have the same images in the same order."""
    if not np.array_equal(first.drawn, second.drawn):
        raise ValueError("both must be of the same images in the same order")
    return ImageScores(first.values - second.values, first.drawn)
