"""Weighted sums of an attribution's cells on each test image, for intervals over seeds and, within them, images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...core.evaluate.counts import Floats, Ints
from ...core.evaluate.factorial import Attributed
from ...core.evaluate.intervals import ValueRange
from ...core.evaluate.nested import ImageScores, nested
from ..report.answers import aligned
from ..report.claims import finite_or_none
from ..report.contrasts import AnswersOf

_SEED = 0  # of the bootstrap


class CellImages(NamedTuple):
    """The test images of one seed. correct: [2^k, M], right answers of each cell; drawn: [M], which cluster an image is of."""

    correct: Floats
    drawn: Ints


def images_of(stages: Sequence[str], metric: str, seeds: Sequence[int], answers: AnswersOf) -> list[CellImages] | None:
    """Those of each seed; None where predictions were not kept, or cells were not tested on the same images. stages: of each cell."""
    key, _, name = metric.rpartition("/")
    found = list[CellImages]()
    for seed in seeds if name == "accuracy" else ():
        of_stage = {stage: answers(stage, seed) for stage in dict.fromkeys(stages)}
        if any(key not in kept for kept in of_stage.values()):
            return None
        pairs = {stage: aligned(of_stage[stages[0]], kept, (key, key)) for stage, kept in of_stage.items()}
        if any(isinstance(pair, str) for pair in pairs.values()):
            return None
        rows: dict[str, Any] = {stage: pair[1] for stage, pair in pairs.items() if not isinstance(pair, str)}
        found.append(CellImages(np.stack([rows[stage].correct for stage in stages]), rows[stages[0]].images.drawn))
    return found or None


def effect_over_images(
    found: Attributed, weights: Floats, images: Sequence[CellImages] | None, span: ValueRange
) -> tuple[Attributed, float | None]:
    """The sum with its interval and p over seeds and images; as it is, and None, without images. weights: [2^k]."""
    if images is None:
        return found, None
    both = nested([[ImageScores(weights @ one.correct, one.drawn)] for one in images], seed=_SEED)
    over = both.interval(seed=_SEED, span=span)
    return found._replace(low=finite_or_none(over.low), high=finite_or_none(over.high)), both.p()
