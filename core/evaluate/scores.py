"""The scores of a classifier on labelled test sets, in the form of result.json, and kept for predictions.safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..images.open import Images
from ..views.view import Evaluation
from .features import extract
from .measures import HeldOut, Measured, measure
from .predictions import Predictions, SavedScores, ScoredImages, to_half


class Scored:
    """What a run says about its test sets: metrics, intervals and details of result.json, and the scores that they come from.

    metrics: "TEST/PROTOCOL/METRIC" -> value (`definitions` says what it is). intervals: [low, high] of 95 %, for some metrics. details:
    "TEST/PROTOCOL" -> per class, confusion, groups, calibration. Every number of scores is computed from the float16 ones of the file.
    """

    def __init__(self, classes: Sequence[str], seed: int, open_set: bool = False) -> None:
        """classes: names; label and score i are of classes[i]. seed: of the bootstrap. open_set: whether the last class is `unknown`."""
        self.classes, self.seed, self.open_set = tuple(classes), seed, open_set
        self.metrics: dict[str, float] = {}
        self.intervals: dict[str, list[float]] = {}
        self.details: dict[str, Any] = {}
        self.kept = Predictions()

    def add(
        self,
        key: str,
        images: Images,
        scores: Tensor,
        kind: str = "logits",
        *,
        held_out: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Score one protocol on one test set under key = "TEST/PROTOCOL".

        images: labelled, labels as indices into the classes. scores: [M, K], or [draws, M, K] where a protocol repeats; in float16
        if they are rounded by `to_half` already.
        kind: logits, probabilities, votes (0 or more, kNN's) or similarities (cosines, ridge's outputs).
        held_out: scores [N, K] and labels [N] of *training* images that the classifier has not been fitted on; a temperature is fitted
        on them. Where the set has groups, such as patients, the bootstrap draws these as a whole, as splits keep them together
        (`Images.units`); else copies and blends of an image (`Images.keys`).
        Raises UserError for a set without images, and for scores that are not numbers.
        """
        assert images.labels is not None
        test = key.partition("/")[0]
        rows = self.kept.tests.get(test) or scored_images(images, self.classes, self.open_set)
        given = scores.detach().cpu()
        whole = given.dtype == torch.float16  # rounded already, with its predictions
        wide = given if given.dtype == torch.float64 else given.float()  # numpy has no bfloat16
        saved = (
            SavedScores(kind, given.numpy())
            if whole
            else to_half(wide.numpy(), kind, key, several=rows.labels.ndim == 2)
        )
        self.kept.add(key, rows, saved)
        slice_of_train = None if held_out is None else HeldOut(*(t.detach().cpu().numpy() for t in held_out))
        self.add_measured(key, measure(rows, saved, seed=self.seed, held_out=slice_of_train))

    def add_measured(self, key: str, found: Measured) -> None:
        """Add what was measured under key = "TEST/PROTOCOL" of a protocol that gives no scores; nothing of it goes into the file."""
        self.metrics |= {f"{key}/{name}": value for name, value in found.metrics.items()}
        self.intervals |= {f"{key}/{name}": pair for name, pair in found.intervals.items()}
        self.details[key] = found.details

    def save(self, folder: Path) -> None:
        """Write predictions.safetensors into a run's folder; nothing without scores. On one process, before the run finishes."""
        if self.kept.scores:
            self.kept.write(folder)

    def as_result(self) -> dict[str, Any]:
        """The entries of result.json."""
        return {"metrics": self.metrics, "intervals": self.intervals, "details": self.details}


def scored_images(images: Images, classes: Sequence[str], open_set: bool = False) -> ScoredImages:
    """A labelled set as predictions.safetensors has it, where several domains are called groups, and groups are clusters."""
    assert images.labels is not None
    several = len(images.domain_names) > 1
    return ScoredImages(
        images.keys().numpy(),
        images.labels.cpu().numpy(),
        tuple(classes),
        images.domains.numpy() if several else None,
        tuple(images.domain_names) if several else (),
        None if images.groups is None else images.units().numpy(),
        open_set,
    )


def score(
    classifier: nn.Module,
    tests: Mapping[str, Images],
    view: Evaluation,
    classes: Sequence[str],
    device: torch.device,
    seed: int,
    workers: int = 0,
) -> Scored:
    """Test a classifier, which gives logits, on labelled sets (labels as indices into `classes`), each image once."""
    scored = Scored(classes, seed)
    for name, images in tests.items():
        scored.add(f"{name}/classifier", images, extract(classifier, images, view, device=device, workers=workers))
    return scored
