"""Interleaved trials and their statistics: each round times each contender once, so all share the machine's conditions."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
SKIP, FEWEST = 3, 8
"""Batches by the clock: those that loaders begin with, which are not counted, and the fewest that are."""


class Contender(NamedTuple):
    """One way to do the work. open(batches) yields, for that many batches, the number of source images in each."""

    name: str
    open: Callable[[int], Iterator[int]]


class Cost(NamedTuple):
    """The cost of one trial, in microseconds per source image."""

    main: float  # what is compared
    images: int
    workers: float = 0.0  # CPU time of the loader processes, all together


Costs = dict[str, list[Cost]]
Timer = Callable[[Contender, int], Cost]


def on_one_core(contender: Contender, batches: int) -> Cost:
    """CPU time of this process, all threads, from opening to the last batch; other work on the machine hardly matters."""
    start = time.process_time()
    images = sum(contender.open(batches))
    return Cost((time.process_time() - start) / images * 1e6, images)


def by_the_clock(contender: Contender, batches: int) -> Cost:
    """Wall-clock time between batches once loader processes run: the first SKIP batches are not counted."""
    results = contender.open(SKIP + batches)
    for _ in range(SKIP):
        next(results)
    start, busy = time.perf_counter(), children_seconds()
    images = sum(next(results) for _ in range(batches))
    seconds, busy = time.perf_counter() - start, children_seconds() - busy
    for _ in results:
        raise AssertionError(f"{contender.name} went on after its last batch")
    return Cost(seconds / images * 1e6, images, busy / images * 1e6)


def children_seconds() -> float:
    """CPU time that the living child processes have used, in the kernel's ticks of 10 ms; 0 where there is no /proc."""
    ticks = 0
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


def interleaved(contenders: Sequence[Contender], timer: Timer, trials: int, seconds: float) -> Costs:
    """`trials` rounds, each in another order, after a first run of each contender that fills caches and sets its length.

    seconds: length of a trial, at least one batch. By wall clock, which is less exact, three times as long and at least FEWEST batches.
    """
    least = 1
    if timer is by_the_clock:
        least, seconds = FEWEST, 3 * seconds
    lengths = {}
    for contender in contenders:
        timer(contender, 1)
        tried = timer(contender, least)
        lengths[contender.name] = max(least, math.ceil(seconds / (tried.main * 1e-6 * tried.images / least)))
    costs: Costs = {contender.name: [] for contender in contenders}
    shuffled = np.random.default_rng(0)
    for _ in range(trials):
        for k in shuffled.permutation(len(contenders)):
            contender = contenders[k]
            costs[contender.name].append(timer(contender, lengths[contender.name]))
    return costs


class Interval(NamedTuple):
    """A median with its interval."""

    median: float
    low: float
    high: float

    @classmethod
    def quartiles(cls, values: Sequence[float]) -> Interval:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        return cls(float(middle), float(low), float(high))

    @classmethod
    def ratio(cls, numerator: Sequence[Cost], denominator: Sequence[Cost]) -> Interval:
        """Median of the rounds' ratios, with its 95 % percentile bootstrap interval over rounds."""
        return cls.of_median([above.main / below.main for above, below in zip(numerator, denominator, strict=True)])

    @classmethod
    def of_median(cls, values: Sequence[float]) -> Interval:
        """The median with its 95 % percentile bootstrap interval."""
        found = np.array(values)
        drawn = np.random.default_rng(0).integers(0, len(found), (RESAMPLES, len(found)))
        low, high = np.quantile(np.median(found[drawn], axis=1), [0.025, 0.975])
        return cls(float(np.median(found)), float(low), float(high))
