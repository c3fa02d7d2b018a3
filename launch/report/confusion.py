"""Confusion matrices and per-class scores, summed over the seeds of an experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from .classes import class_bars
from .figures import Figure, heat, shade

_NUMBERED = 20  # most classes of a matrix that is shown as numbers; larger ones are shown as shades


@dataclass(frozen=True)
class Confusion:
    """One confusion matrix of the page.

    name: TEST/PROTOCOL. rows: (true class, [(count, shade in percent, is it the diagonal)]). mistakes: (true class, predicted
    class, count). scores: (class, [precision, recall, F1], number of images). bars: the accuracy of each class.
    """

    name: str
    seeds: int
    classes: list[str]
    rows: list[tuple[str, list[tuple[int, int, bool]]]]
    figure: Figure | None
    mistakes: list[tuple[str, str, int]]
    scores: list[tuple[str, list[str], int]]
    bars: Figure | None = None


def confusions(results: Sequence[Mapping[str, Any]]) -> list[Confusion]:
    """One matrix for each TEST/PROTOCOL in the results' details. Seeds with other classes than the first are left out."""
    found = []
    for name, first in (results[0].get("details") or {}).items() if results else ():
        if not isinstance(first, Mapping) or "confusion" not in first:
            continue
        all_details = [(result.get("details") or {}).get(name) or {} for result in results]
        alike = [
            detail for detail in all_details if detail.get("classes") == first.get("classes") and "confusion" in detail
        ]
        found.append(_confusion(name, alike))
    return found


def _confusion(name: str, details: Sequence[Mapping[str, Any]]) -> Confusion:
    counts = numpy.sum([numpy.asarray(detail["confusion"], dtype=numpy.int64) for detail in details], axis=0)
    given = details[0].get("classes") or list(details[0].get("per_class") or {}) or range(len(counts))
    classes = [str(c) for c in given]
    shades = numpy.rint(100 * shade(counts)).astype(int)
    rows = [
        (label, [(int(n), int(shades[i, j]), i == j) for j, n in enumerate(counts[i])])
        for i, label in enumerate(classes)
    ]
    off = counts - numpy.diag(numpy.diag(counts))
    order = numpy.argsort(off, axis=None, kind="stable")[::-1][:5]
    pairs = [divmod(int(k), len(classes)) for k in order]
    return Confusion(
        name=name,
        seeds=len(details),
        classes=classes,
        rows=rows if len(classes) <= _NUMBERED else [],
        figure=heat(counts.tolist(), f"Confusion matrix, {name}") if len(classes) > _NUMBERED else None,
        mistakes=[(classes[i], classes[j], int(off[i, j])) for i, j in pairs if off[i, j]],
        scores=_scores(counts, classes),
        bars=class_bars(counts, classes, name, len(details)),
    )


def _scores(counts: numpy.ndarray, classes: Sequence[str]) -> list[tuple[str, list[str], int]]:
    """Precision, recall and F1 of each class from the summed counts, in percent; a dash where they are undefined."""
    hits, true, predicted = numpy.diag(counts), counts.sum(1), counts.sum(0)
    lines = []
    for i, label in enumerate(classes):
        ratios = [(hits[i], predicted[i]), (hits[i], true[i]), (2 * hits[i], true[i] + predicted[i])]
        lines.append((label, [f"{100 * a / b:.1f}" if b else "–" for a, b in ratios], int(true[i])))
    return lines
