"""What an adaptation says of itself beside its accuracy: distances of the domains, accuracy by class, health of the training, changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.evaluate.intervals import mean_interval
from .curves import health_curves
from .figures import Figure
from .records import StageRuns
from .tables import number

FEW_IMAGES = 10  # images of a class on which priors are estimated, below which the page calls them few
_MOST_CLASSES = 40  # of the table by class; of more, those that are worst in the last domain
_MEANINGS = (
    "Both domains in the features that the head sees, before and after the training. A-distance: 0 if a domain classifier is at chance on "
    "held-out images, 2 if it is never wrong. MMD: unbiased, squared, with the p of a permutation test that both domains are alike. "
    "BatchNorm gap: how many deviations of the source its inputs on the target are off, mean over layers. No label of the target was "
    "read for these."
)


@dataclass(frozen=True)
class DomainLine:
    """One distance of the domains: its name, and its values before and after as text."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class AdaptedView:
    """What the page shows. lines: distances; priors: (how, total variation); foot: sentences under both. domains, classes: accuracy by
    class, a line (class, [a text for each domain]). changes: sentences.
    """

    lines: list[DomainLine]
    priors: list[tuple[str, str]]
    foot: list[str]
    domains: list[str]
    classes: list[tuple[str, list[str]]]
    curves: list[Figure]
    changes: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def shown(self) -> bool:
        return bool(self.lines or self.priors or self.classes or self.curves or self.changes)


def adapted_view(stage: StageRuns) -> AdaptedView:
    """Of one experiment, over its seeds; of what runs of earlier versions lack, nothing."""
    found = [entry for result in stage.results if isinstance(entry := result.get("diagnostics"), Mapping)]
    lines = _domain_lines(found)
    shifts = [entry for result in stage.results if isinstance(entry := result.get("label_shift"), Mapping)]
    priors = _prior_lines(shifts)
    seeds = len(stage.results)
    foot = [_MEANINGS] if lines else []
    foot += _prior_foot(shifts) if priors else []
    foot += [f"Means over {seeds} seeds, with 95 % t-intervals; of p the largest."] if seeds > 1 and lines else []
    domains, classes, notes = _by_class(stage.results)
    is_adaptation = stage.first.verb == "adapt"
    return AdaptedView(
        lines,
        priors,
        foot,
        domains,
        classes,
        health_curves([record.rows for record in stage.logged], stage.seed_names) if is_adaptation else [],
        _changes(stage.results),
        notes,
    )


def _domain_lines(found: Sequence[Mapping[str, Any]]) -> list[DomainLine]:
    shown = (
        ("A-distance", "a_distance", _of_distances),
        ("MMD", "mmd", _of_mmds),
        ("BatchNorm gap", "batchnorm", _of_gaps),
    )
    lines = []
    for name, key, words in shown:
        cells = [_cell(found, key, when, words) for when in ("before", "after")]
        if any(cells):
            lines.append(DomainLine(name, *(cell or "not measured" for cell in cells)))
    counts = [one["target"] for one in found if one.get("target")]
    if counts:
        mean = _mean([one["effective"] for one in counts])
        lines.append(DomainLine(f"Effective number of predicted classes, of {counts[0]['classes']}", "", mean))
    return lines


def _cell(found: Sequence[Mapping[str, Any]], key: str, when: str, words: Callable[[list[Any]], str]) -> str:
    values = [(one.get(key) or {}).get(when) for one in found]
    known = [value for value in values if value is not None]
    return words(known) if known else ""


def _of_distances(values: list[Any]) -> str:
    if len(values) == 1:
        (one,) = values
        return f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
    return _mean([one["value"] for one in values], (0.0, 2.0))


def _of_mmds(values: list[Any]) -> str:
    p = max(one["p"] for one in values)
    return f"{_mean([one['value'] for one in values])} (p = {p:.3f})".replace("-", "−")


def _of_gaps(values: list[Any]) -> str:
    return _mean(values, (0.0, math.inf))


def _mean(values: Sequence[float], span: tuple[float, float] = (-math.inf, math.inf)) -> str:
    mean, low, high = mean_interval(values, span=span)
    return f"{mean:.2f}" if low is None or high is None else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _prior_lines(shifts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The distance of class priors by each estimate, with the interval of a single run, then of each test."""
    lines = []
    for name, label in (("bbse", "BBSE"), ("mlls", "MLLS")):
        entries = [one[name] for one in shifts if isinstance(one.get(name), Mapping)]
        if not entries:
            continue
        text = _mean([one["total_variation"] for one in entries], (0.0, 1.0))
        if len(entries) == 1 and entries[0].get("interval"):
            low, high = entries[0]["interval"]
            text += f" [{low:.2f}, {high:.2f}]"
        lines.append((f"estimated by {label}, without labels of the target", text))
    for test in dict.fromkeys(name for one in shifts for name in one.get("true") or {}):
        known = [one["true"][test]["total_variation"] for one in shifts if test in (one.get("true") or {})]
        lines.append((f"true, of the test {test}", _mean(known, (0.0, 1.0))))
    return lines


def _prior_foot(shifts: Sequence[Mapping[str, Any]]) -> list[str]:
    measured, on = shifts[0].get("measured_on"), ""
    if measured:
        images = min((one.get("images") or {}).get("source", 0) for one in shifts)
        classes = len(shifts[0].get("source") or {})
        on = f" The classifier's confusion was measured on {f'{images} ' if images else ''}{measured} images"
        on += f", few for {classes} classes, so the estimates are rough." if 0 < images < FEW_IMAGES * classes else "."
    return [f"Distance of class priors: the total variation, the share of images whose class would have to change.{on}"]


def _by_class(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, list[str]]], list[str]]:
    """(domains, lines, notes): the mean over seeds of each class's accuracy in each domain."""
    found = [entry for result in results if isinstance(entry := result.get("by_class"), Mapping) and entry]
    if not found:
        return [], [], []
    shared = [name for name in found[0] if all(name in one for one in found)]
    domains = sorted(shared, key=lambda name: name.partition("/")[0] != "source")
    classes = list(found[0][domains[0]]["accuracy"]) if domains else []

    def accuracy(domain: str, name: str) -> float | None:
        values = [one[domain]["accuracy"].get(name) for one in found]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known else None

    means = {name: [accuracy(domain, name) for domain in domains] for name in classes}
    kept = [name for name in classes if any(value is not None for value in means[name])]
    notes = []
    if len(kept) > _MOST_CLASSES:
        notes.append(f"The {_MOST_CLASSES} of {len(kept)} classes with the lowest accuracy on {domains[-1]}.")
        last = {name: math.inf if (value := means[name][-1]) is None else value for name in kept}
        kept = sorted(kept, key=lambda name: last[name])[:_MOST_CLASSES]
    for domain in domains:
        if on := found[0][domain].get("measured_on"):
            notes.append(f"{domain}: {on} images.")
    lines = [(name, ["–" if value is None else number(value) for value in means[name]]) for name in kept]
    return domains, lines, notes


def _changes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the training made right and wrong, counts summed over seeds."""
    found = [entry for result in results if isinstance(entry := result.get("changes"), Mapping)]
    sentences = []
    for test in dict.fromkeys(name for one in found for name in one.get("tests") or {}):
        each = [one["tests"][test] for one in found if test in one["tests"]]
        images, right, wrong = (sum(one[key] for one in each) for key in ("images", "to_right", "to_wrong"))
        seeds = f" over {len(each)} seeds" if len(each) > 1 else ""
        sentences.append(
            f"Of {images} images of {test}{seeds}, {right} were wrong before the training and are right after it, {wrong} were right and "
            f"are wrong. Before: {found[0]['before']}."
        )
    return sentences
