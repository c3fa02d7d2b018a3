"""What a run says of its test images, one by one: read from predictions.safetensors and made small, so that many runs fit in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.evaluate.calibration import log_likelihood, probabilities
from ...core.evaluate.counts import Floats, Ints
from ...core.evaluate.predictions import SavedScores, ScoredImages, read_predictions
from ...core.launchlog import warn
from ...core.manifest import DamagedFile
from ...core.run.rows import PREDICTIONS
from .records import RunRecord, StageRuns

_NO_FILE = (
    f"has no {PREDICTIONS}, as runs of earlier versions, those without labelled test images, and those of retrieval and "
    "verification alone"
)


@dataclass(frozen=True)
class Answers:
    """One TEST/PROTOCOL of one run. Rows are the test images, M.

    correct: float [M], 1 or 0; the mean over the draws of a protocol that repeats, which then has no single prediction.
    nll: float [M], of probabilities only. confidence: float [M], the highest probability or share of votes.
    """

    images: ScoredImages
    kind: str
    correct: Floats
    predictions: Ints | None
    nll: Floats | None
    confidence: Floats | None

    def at(self, rows: Ints) -> Answers:
        """The same answers with the images in another order. rows: int64 [M]."""
        images = self.images
        groups, clusters = (None if a is None else a[rows] for a in (images.groups, images.clusters))
        ordered = ScoredImages(
            images.keys[rows], images.labels[rows], images.classes, groups, images.group_names, clusters
        )
        predictions = None if self.predictions is None else self.predictions[rows]
        nll, sure = (None if a is None else a[rows] for a in (self.nll, self.confidence))
        return Answers(ordered, self.kind, self.correct[rows], predictions, nll, sure)


Seeds = Mapping[int | None, Mapping[str, Answers]]  # the answers of an experiment's runs


def read_answers(record: RunRecord) -> dict[str, Answers]:
    """The answers of a finished run by "TEST/PROTOCOL"; none if it has no predictions. Damage is added to the record's, and warned of."""
    if not record.finished:
        return {}
    try:
        found = read_predictions(record.path)
    except (DamagedFile, UserError) as error:
        if not any(PREDICTIONS in told for told in record.damage):
            record.damage.append(str(error))
            warn(f"WARNING: {error}")
        return {}
    if found is None:
        return {}
    return {
        key: _answers(found.tests[key.partition("/")[0]], saved)
        for key, saved in found.scores.items()
        if found.tests[key.partition("/")[0]].labels.ndim == 1 and saved.scores.size
    }


def answers_of(stage: StageRuns) -> Seeds:
    """The answers of each run that has predictions, by its seed."""
    return {record.seed: found for record in stage.records if (found := read_answers(record))}


def why_no_answers(stage: StageRuns, *, others: bool) -> str:
    """Why `answers_of` an experiment is empty, in words that follow its name; "" if that goes without saying.

    others: whether other experiments have answers.
    """
    told = [sentence for record in stage.records for sentence in record.damage if PREDICTIONS in sentence]
    if told:
        return f"has no scores that can be read: {told[0]}"
    if not all(record.finished for record in stage.records):
        return "is not finished" if others else ""
    if any((found := read_predictions(record.path)) and found.scores for record in stage.records):
        return "has test images of several classes each, or none; a report compares images of one class each"
    return _NO_FILE if others else ""


def _answers(images: ScoredImages, saved: SavedScores) -> Answers:
    if saved.scores.ndim == 3:
        right = saved.scores.argmax(axis=2) == images.labels
        return Answers(images, saved.kind, right.mean(axis=0), None, None, None)
    predictions = saved.scores.argmax(axis=1)
    p = probabilities(saved.scores, saved.kind)
    nll = None if p is None else -log_likelihood(saved.scores, images.labels, saved.kind)
    sure = p.max(axis=1) if p is not None else None
    if saved.kind == "votes":
        sure = saved.scores.max(axis=1).astype(np.float64)
    return Answers(images, saved.kind, (predictions == images.labels).astype(np.float64), predictions, nll, sure)


def aligned(
    first: Mapping[str, Any], second: Mapping[str, Any], keys: tuple[str, str]
) -> tuple[Answers, Answers] | str:
    """The answers of two runs on the same images, row by row; or why they cannot be paired, in words.

    first, second: of `read_answers`; keys: the TEST/PROTOCOL of each.
    """
    a, b = first[keys[0]], second[keys[1]]
    if a.images.split != b.images.split:
        sizes = f"{len(a.images.keys)} and {len(b.images.keys)} images, splits {a.images.split[:12]} and {b.images.split[:12]}"
        return f"their test sets hold different images ({sizes})"
    if a.images.classes != b.images.classes:
        return "their classes differ, or are numbered differently"
    a, b = (one.at(np.lexsort((one.images.labels, one.images.keys))) for one in (a, b))
    if moved := int((a.images.labels != b.images.labels).sum()):
        return f"{moved} images have other labels"
    return a, b
