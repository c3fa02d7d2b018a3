"""What accuracy costs no learning: chance, and always the most frequent class of the test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.printable import capital
from .claims import stages_shown
from .meanings import metric_meaning
from .records import StageRuns
from .results import test_of

ACCURACY = "accuracy"
HELD_OUT_SLICE = "held_out/"  # the name of held-out training images among tests, whose names have no "/"; their metrics begin with it


@dataclass(frozen=True)
class Levels:
    """Fractions. chance: 1 over the number of classes. majority: the share of the most frequent class; None if it is not known."""

    chance: float
    majority: float | None

    def lines(self) -> list[tuple[str, float]]:
        """(name, fraction) of each; one where both are equal."""
        if self.majority is None or abs(self.majority - self.chance) < 5e-4:
            return [("chance", self.chance)]
        return [("chance", self.chance), ("most frequent class", self.majority)]

    def words(self) -> str:
        """ "chance is 10.0 %, always the most frequent class 11.2 %" ."""
        always = "" if self.majority is None else f", always the most frequent class {100 * self.majority:.1f} %"
        return f"chance is {100 * self.chance:.1f} %{always}"


LevelsOfStages = Mapping[str, Mapping[str, Levels]]  # by stage and test


def levels_of(stages: Sequence[StageRuns]) -> dict[str, dict[str, Levels]]:
    """By stage and test. A test without details of its own, as a pretraining's, takes those of the same images elsewhere on the page."""
    known: dict[str, Levels] = {}
    own = {stage.name: _own(stage) for stage in stages}
    for stage in stages:
        for test, digest in _digests(stage).items():
            if test in own[stage.name]:
                known.setdefault(digest, own[stage.name][test])
    found = {}
    for stage in stages:
        shared = {test: known[digest] for test, digest in _digests(stage).items() if digest in known}
        found[stage.name] = {**_mapped(stage), **shared, **own[stage.name]}
    return found


def shared_levels(found: Iterable[Levels | None]) -> Levels | None:
    """The levels if all are the same to a point: majorities of several splits of one set differ in the digits after it."""
    known = list(found)
    each = [one for one in known if one is not None]
    if not each or len(each) < len(known):
        return None
    shares = [one.majority for one in each if one.majority is not None]
    alike = len({one.chance for one in each}) == 1 and len(shares) in (0, len(each))
    return each[0] if alike and (not shares or max(shares) - min(shares) < 0.01) else None


def level_words(found: Mapping[str, Levels]) -> str:
    """Chance, and the most frequent class of each test, in one sentence; "" if nothing is known."""
    if not found:
        return ""
    if (one := shared_levels(found.values())) is not None:
        return f"{capital(one.words())}."
    return f"{'; '.join(f'{test}: {one.words()}' for test, one in found.items())}."


def levels_for(levels: Mapping[str, Levels], metric: str) -> Levels | None:
    """Those that belong to TEST/PROTOCOL/METRIC; None for metrics other than accuracy, and for tests that are not known."""
    parts = metric.rsplit("/", 2)
    return levels.get(parts[0].removeprefix("eval/")) if parts[-1] == ACCURACY else None


def _own(stage: StageRuns) -> dict[str, Levels]:
    """From the confusion matrices, counts of all seeds together. Open-set tests have classes that no guess can name, so they have none."""
    counts: dict[str, list[int]] = {}
    for result in stage.results:
        seen = set[str]()
        for name, detail in (result.get("details") or {}).items():
            test = name.rpartition("/")[0]
            if test in seen or not isinstance(detail, Mapping) or not _square(detail.get("confusion")):
                continue
            if f"{name}/hos" in (result.get("metrics") or {}):
                continue
            seen.add(test)
            rows = [int(sum(row)) for row in detail["confusion"]]
            before = counts.setdefault(test, [0] * len(rows))
            if len(before) == len(rows):
                counts[test] = [a + b for a, b in zip(before, rows, strict=True)]
    return {test: Levels(1 / len(rows), max(rows) / sum(rows)) for test, rows in counts.items() if sum(rows)}


def slice_levels(stage: StageRuns) -> dict[str, Levels]:
    """Those of the held-out training images of a fine-tuning, as HELD_OUT_SLICE; {} where a result does not count their classes."""
    counts: list[Any] = [(result.get("held_out") or {}).get("per_class") for result in stage.results]
    if not counts or not all(isinstance(one, list) and len(one) == len(counts[0]) and sum(one) for one in counts):
        return {}
    total = [sum(one) for one in zip(*counts, strict=True)]
    return {HELD_OUT_SLICE: Levels(1 / len(total), max(total) / sum(total))}


def _square(matrix: Any) -> bool:
    return isinstance(matrix, list) and len(matrix) > 1 and all(isinstance(row, list) for row in matrix)


def _digests(stage: StageRuns) -> dict[str, str]:
    """{test: digest of its images} of the first result."""
    splits = ((stage.results[0].get("data") or {}).get("split") or {}) if stage.results else {}
    if not isinstance(splits, Mapping):
        return {}
    # An adaptation names its tests test.NAME, beside the training sets NAME.
    tests = {name.removeprefix("test."): digest for name, digest in splits.items() if name.startswith("test.")}
    return {name: str(digest) for name, digest in (tests or splits).items()}


def _mapped(stage: StageRuns) -> dict[str, Levels]:
    """From the map's class names and labels: the majority only where all images of the test are on the map."""
    result = stage.results[0] if stage.results else {}
    sizes = (result.get("data") or {}).get("n") or {}
    chart = stage.first.map
    classes, labels = chart.get("classes") or [], chart.get("label") or []
    found = {}
    for i, test in enumerate(chart.get("domains") or []):
        own = [label for label, domain in zip(labels, chart.get("domain") or [], strict=False) if domain == i]
        if len(classes) > 1 and own and min(own) >= 0:
            whole = isinstance(sizes, Mapping) and sizes.get(test) == len(own)
            found[test] = Levels(1 / len(classes), max(map(own.count, set(own))) / len(own) if whole else None)
    return found


def what_rows_measure(rows: Sequence[Mapping[str, Any]], levels: LevelsOfStages) -> list[str]:
    """What the main column measures, and what accuracy costs nothing."""
    names = {row["metric"].rsplit("/", 1)[-1] for row in rows}
    meaning = metric_meaning(rows[0]["metric"]) if len(names) == 1 else ""
    found: dict[str, list[Levels | None]] = {}
    for row in rows:
        if row["metric"].rsplit("/", 1)[-1] == ACCURACY:
            found.setdefault(test_of(row["metric"]), []).extend(_of_row(row, levels))
    known = {test: one for test, each in found.items() if (one := _of_all(each)) is not None}
    told = " ".join(filter(None, [capital(meaning), level_words(known)]))
    return [told] if told else []


def marks_of_rows(rows: Sequence[Mapping[str, Any]], levels: LevelsOfStages) -> Levels | None:
    """What all rows share; a row that is a mean over tasks has those of each task."""
    return shared_levels(one for row in rows for one in _of_row(row, levels))


def _of_row(row: Mapping[str, Any], levels: LevelsOfStages) -> list[Levels | None]:
    return [levels_for(levels.get(stage, {}), row["metric"]) for stage in stages_shown(row)]


def _of_all(each: Sequence[Levels | None]) -> Levels | None:
    """Of a test's name, whose images may differ between stages: what they share, or chance alone, or nothing. Unknown ones don't count."""
    known = [one for one in each if one is not None]
    if (one := shared_levels(known)) is not None:
        return one
    return Levels(known[0].chance, None) if len({one.chance for one in known}) == 1 else None
