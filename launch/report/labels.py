"""Accuracy against the number of labelled training images: a figure for each test set, where stages of a page differ in that number."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy

from ...core.evaluate.intervals import mean_interval
from .curves import Series, draw_lines
from .figures import SERIES_COLOURS, Figure, colour
from .levels import ACCURACY, Levels, LevelsOfStages
from .records import StageRuns
from .results import test_of

_MOST_FIGURES = 4
_ACROSS = "labelled training images"


class Point(NamedTuple):
    """images: labelled ones it was trained on. mean, low, high: of accuracy, fractions; without an interval low and high are None."""

    images: float
    mean: float
    low: float | None
    high: float | None


def label_figures(stages: Sequence[StageRuns], levels: LevelsOfStages) -> list[Figure]:
    """Fine-tunings and probes of few labels by their training images; a line for each network, its weights and its method.

    levels: chance and the most frequent class, dashed. A test set has a figure where some line has two points.
    """
    by_test: dict[str, dict[str, list[Point]]] = {}
    known: dict[str, Levels] = {}
    for stage in stages:
        for metric in _accuracies(stage):
            test = test_of(metric).removeprefix("eval/")
            lines = by_test.setdefault(test, {})
            point = _point(stage, metric)
            name = _free_name(_name(stage, metric), lines, point)
            lines.setdefault(name, []).append(point)
            if (level := levels.get(stage.name, {}).get(test)) is not None:
                known.setdefault(test, level)
    kept = {test: lines for test, lines in by_test.items() if any(len(points) > 1 for points in lines.values())}
    return [_figure(test, lines, known.get(test)) for test, lines in list(kept.items())[:_MOST_FIGURES]]


def _accuracies(stage: StageRuns) -> list[str]:
    """The accuracies of a stage whose number of labelled images is known: of few-label protocols, and of fine-tunings."""
    if not stage.results:
        return []
    shared = [
        m for m in stage.results[0].get("metrics") or {} if all(m in (r.get("metrics") or {}) for r in stage.results)
    ]
    return [
        m for m in shared if m.endswith(f"/{ACCURACY}") and all(_images(r, m, stage.first.verb) for r in stage.results)
    ]


def _images(result: Mapping[str, Any], metric: str, verb: str) -> float:
    """How many labelled images it was trained on; 0 where that is not known."""
    detail = (result.get("details") or {}).get(metric.rpartition("/")[0])
    given = detail.get("images") if isinstance(detail, Mapping) else None
    if isinstance(given, list) and given and all(isinstance(n, int) for n in given):
        return median(given)
    sizes = (result.get("data") or {}).get("n")
    found = sizes.get("train") if verb == "finetune" and isinstance(sizes, Mapping) else 0
    return found if isinstance(found, int) else 0


def _point(stage: StageRuns, metric: str) -> Point:
    values = [float(result["metrics"][metric]) for result in stage.results]
    mean, low, high = mean_interval(values, span=(0.0, 1.0))
    if len(values) == 1:
        low, high = (stage.results[0].get("intervals") or {}).get(metric) or (None, None)
    return Point(median(_images(result, metric, stage.first.verb) for result in stage.results), mean, low, high)


def _name(stage: StageRuns, metric: str) -> str:
    """What a line is called: the protocol of a probe without its number of labels, the network and its weights."""
    protocol = re.sub(r"-([\d.e-]+|\d+shot)$", "", metric.rsplit("/", 2)[1])
    config: Mapping[str, Any] = stage.first.config
    backbone = config.get("backbone") if isinstance(config.get("backbone"), Mapping) else {}
    parts = ["" if protocol == "classifier" else protocol, _weights(backbone or {})]
    return ", ".join(filter(None, parts))


def _weights(backbone: Mapping[str, Any]) -> str:
    """ "resnet18 from scratch", "resnet18, weights of simclr"."""
    name, weights = backbone.get("name") or "", str(backbone.get("weights") or "none")
    last = weights.rstrip("/").rpartition("/")[2]
    return (
        f"{name} from scratch".strip() if weights == "none" else ", ".join(filter(None, [name, f"weights of {last}"]))
    )


def _free_name(name: str, lines: Mapping[str, Sequence[Point]], point: Point) -> str:
    """The name, or with a number where its line has a point at as many images already: another training on the same ones."""
    for number in range(1, 100):
        own = name if number == 1 else f"{name} ({number})"
        if all(other.images != point.images for other in lines.get(own, ())):
            return own
    return name


def _figure(test: str, lines: Mapping[str, Sequence[Point]], level: Levels | None) -> Figure:
    shown = {name: sorted(points) for name, points in list(lines.items())[: SERIES_COLOURS - 1]}
    series = [
        Series(
            numpy.array([math.log10(point.images) for point in points]),
            numpy.array([100 * point.mean for point in points]),
            1,
        )
        for points in shown.values()
    ]
    ranges = [
        (i, math.log10(point.images), 100 * point.low, 100 * point.high)
        for i, points in enumerate(shown.values())
        for point in points
        if point.low is not None and point.high is not None
    ]
    marks = [(name, round(100 * share, 2)) for name, share in level.lines()] if level else []
    title = f"Accuracy against labels, {test}"
    dashed = f" Dashed: {', '.join(f'{name} {value:.1f} %' for name, value in marks)}." if marks else ""
    left = f" {len(lines) - len(shown)} more lines are left out." if len(lines) > len(shown) else ""
    caption = (
        "Accuracy (%) by the number of labelled training images, on a logarithmic axis; vertical lines are 95 % intervals, over seeds "
        f"where there are several, else over test images.{dashed}{left}"
    )
    svg = draw_lines(
        list(enumerate(series)), title, thin=False, across=_ACROSS,
        levels=[value for _, value in marks], columns=_columns(series), ranges=ranges,
    )  # fmt: skip
    legend = [(colour(i), name) for i, name in enumerate(shown)]
    # The still figure says it: the page's script has no logarithmic axis.
    return Figure(svg, title, caption, legend)


def _columns(series: Sequence[Series]) -> list[tuple[float, str]]:
    """(place, text) of the ticks: the numbers of images themselves, as far as they stand apart."""
    numbers = sorted({round(10**x) for one in series for x in one.steps.tolist()})
    low, high = math.log10(numbers[0]), math.log10(numbers[-1])
    apart, found = (high - low or 1.0) / 6, list[tuple[float, str]]()
    for n in numbers:
        if not found or math.log10(n) - found[-1][0] >= apart:
            found.append((math.log10(n), f"{n:,}"))
    return found
