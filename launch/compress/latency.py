"""How long networks take for a batch: calls in turn, so that all forms share the machine's conditions, and ratios paired by round.

The order of a round is fixed: each second round runs backwards, and each pair of rounds begins with the next form, so that no form
always follows the same one, whose data lie in the caches. Nothing is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.evaluate.statistics import Interval
from ...core.threads import on_threads

TIMED_ROUNDS = 100
WARM_ROUNDS = 10  # before the clock counts
_RESAMPLES = 4000


class Form(NamedTuple):
    """One form of a network. run: a module of torch or an `OnnxSession`, which has its own number of threads; images: [N, C, S, S]."""

    name: str
    run: Callable[[Tensor], Any]
    images: Tensor


class Latency(NamedTuple):
    """Milliseconds of a call, of all N images: median, 95th percentile, quartiles, over so many rounds."""

    median: float
    p95: float
    low: float
    high: float
    rounds: int


def turns_of(forms: int, rounds: int) -> Iterator[list[int]]:
    """The order of each round, as numbers of forms."""
    for each in range(rounds):
        turn = [(each // 2 + place) % forms for place in range(forms)]
        yield turn[::-1] if each % 2 else turn


def time_in_turn(
    forms: Sequence[Form],
    *,
    threads: int,
    rounds: int = TIMED_ROUNDS,
    warm: int = WARM_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of each call by the form's name; call k of each belongs to round k. Names must differ.

    threads: of torch; sessions of ONNX Runtime are opened with theirs. warm: rounds before, which are not timed. clock: seconds, of the
    wall as a caller waits; `time.process_time` counts the processor's time, on which other work of the machine tells less.
    """
    found: dict[str, list[float]] = {form.name: [] for form in forms}
    assert len(found) == len(forms)
    with on_threads(threads), torch.inference_mode():
        for number, turn in enumerate(turns_of(len(forms), warm + rounds)):
            for which in turn:
                spent = _call(forms[which], clock)
                if number >= warm:
                    found[forms[which].name].append(1000 * spent)
    return found


def _call(form: Form, clock: Callable[[], float]) -> float:
    """Seconds of one call, with the wait for a GPU."""
    _wait(form.images)
    began = clock()
    form.run(form.images)
    _wait(form.images)
    return clock() - began


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def latency_of(milliseconds: Sequence[float]) -> Latency:
    """Of the calls of one form."""
    low, median, high, late = (float(value) for value in np.quantile(milliseconds, [0.25, 0.5, 0.75, 0.95]))
    return Latency(median, late, low, high, len(milliseconds))


def latency_ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The median over rounds of above / below, with its 95 % percentile bootstrap interval; call k of both is of one round."""
    return resampled(np.array(above) / np.array(below), lambda ratios: np.median(ratios, axis=-1))


def resampled(values: Sequence[float] | NDArray[np.float64], statistic: Callable[[Any], Any]) -> Interval:
    """statistic(values) with its 95 % percentile bootstrap interval. values: [N]; statistic: [..., N] -> [...]."""
    found = np.array(values)
    drawn = np.random.default_rng(0).integers(0, len(found), (_RESAMPLES, len(found)))
    low, high = np.quantile(statistic(found[drawn]), [0.025, 0.975])
    return Interval(float(statistic(found)), float(low), float(high), "percentile")
