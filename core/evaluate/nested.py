"""A mean over training seeds, tasks and test images, and how sure it is: test images are drawn within seeds, whole clusters at a time.

Seeds, and what a seed's images add to its own value, vary beside the images. The spread over seeds enters as Student's t
(`seeds_and_images_interval`): drawing three seeds with replacement would make their interval far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .counts import Floats, Ints
from .intervals import ANY, ValueRange
from .statistics import (
    RESAMPLES,
    Interval,
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

    A cluster that several tests have, of other seeds or tasks, is drawn once for all of them, as for tasks with the same target; tests
    that no shared cluster connects, directly or by way of others, draw their own. A cluster with several images counts with all of them.
    Raises ValueError unless all seeds have as many tasks.
    """
    if not trainings or not trainings[0] or len({len(tasks) for tasks in trainings}) > 1:
        raise ValueError("needs at least one seed and task, and as many tasks of each seed")
    each = [[float(np.mean(one.values)) for one in tasks] for tasks in trainings]
    tests = [one for tasks in trainings for one in tasks]
    draws, clusters = np.zeros(resamples), 0
    for number, together in enumerate(_connected([np.unique(one.drawn) for one in tests])):
        parts = [tests[k] for k in together]
        every = np.unique(np.concatenate([one.drawn for one in parts]))
        places = [np.searchsorted(every, one.drawn) for one in parts]
        columns = [np.bincount(place, one.values, len(every)) for place, one in zip(places, parts, strict=True)]
        sums: Floats = np.stack(columns, axis=1).astype(np.float64)
        sizes = np.stack([np.bincount(place, minlength=len(every)).astype(np.float64) for place in places], axis=1)
        blocks = drawn_weights(len(every), resamples, seed + number)
        draws += np.concatenate([_means(sums, sizes, weights).sum(axis=1) for weights in blocks])
        clusters += len(every)
    return Nested(tuple(float(np.mean(tasks)) for tasks in each), draws / len(tests), clusters)


def _connected(known: Sequence[Ints]) -> list[list[int]]:
    """The tests that hang together, by their numbers: two do that share a cluster, or that others connect. known: [N] of each."""
    ids, cluster = np.unique(np.concatenate(known), return_inverse=True)
    test = np.repeat(np.arange(len(known)), [len(own) for own in known])
    count = len(known) + len(ids)
    edges = coo_array((np.ones(len(test)), (test, len(known) + cluster)), shape=(count, count))
    _, label = connected_components(edges, directed=False)
    found: dict[int, list[int]] = {}
    for number in range(len(known)):
        found.setdefault(int(label[number]), []).append(number)
    return list(found.values())


def _means(sums: Floats, sizes: Floats, weights: Floats) -> Floats:
    """[B, P], of each test on each draw; a small test of which nothing is drawn keeps its value. sums, sizes: [C, P]; weights: [B, C]."""
    drawn = weights @ sizes
    whole = np.broadcast_to(sums.sum(axis=0) / sizes.sum(axis=0), drawn.shape).copy()
    return np.divide(weights @ sums, drawn, out=whole, where=drawn > 0)


def paired_scores(first: ImageScores, second: ImageScores) -> ImageScores:
    """first - second, image by image. Raises ValueError unless both have the same images in the same order."""
    if not np.array_equal(first.drawn, second.drawn):
        raise ValueError("both must be of the same images in the same order")
    return ImageScores(first.values - second.values, first.drawn)
