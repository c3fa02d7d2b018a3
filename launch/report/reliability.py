"""Two figures of how far confidence can be trusted: reliability diagrams, and risk against coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...core.evaluate.calibration import calibration_error, reliability
from ...core.evaluate.selective import aurc, risk_coverage
from .answers import Answers
from .curves import Series, draw_lines, points_of_each
from .figures import SERIES_COLOURS, Figure, LiveLine, LivePlot, colour
from .levels import Levels

_GREY = 7  # the series colour of the diagonal
_POINTS = 160  # most points of a curve
_MOST_FIGURES = 8


def confidence_figures(runs: Sequence[Mapping[str, Answers]], levels: Mapping[str, Levels] = {}) -> list[Figure]:
    """For each test set both figures; a line for each protocol and seed. runs: the answers of an experiment's seeds.

    levels: chance and the most frequent class of each test, dashed lines of the first figure and a sentence below the second.
    """
    keys = list(dict.fromkeys(key for run in runs for key, found in run.items() if found.confidence is not None))
    figures: list[Figure] = []
    for test in dict.fromkeys(key.partition("/")[0] for key in keys):
        own = [key for key in keys if key.partition("/")[0] == test]
        likely = [key for key in own if any(key in run and run[key].nll is not None for run in runs)]
        own = [*likely, *(key for key in own if key not in likely)]  # so a protocol has one colour in both figures
        figures += [_reliability(test, likely[: SERIES_COLOURS - 3], runs, levels.get(test))] if likely else []
        figures.append(_risk(test, own[: SERIES_COLOURS - 3], runs, levels.get(test)))
    return figures[:_MOST_FIGURES]


def _reliability(test: str, keys: Sequence[str], runs: Sequence[Mapping[str, Answers]], level: Levels | None) -> Figure:
    lines = [(_GREY, Series(np.array([0.0, 100.0]), np.array([0.0, 100.0]), 1))]
    legend = list[tuple[str, str]]()
    for i, key in enumerate(keys):
        errors = list[float]()
        for found in (run[key] for run in runs if key in run):
            if found.confidence is not None:
                bins = reliability(found.confidence, found.correct > 0.5)
                table = 100 * np.array([[one.confidence, one.accuracy] for one in bins])
                lines.append((i, Series(table[:, 0], table[:, 1], 1)))
                errors.append(calibration_error(found.confidence, found.correct > 0.5))
        legend.append((colour(i), f"{_protocol(key)}: ECE {100 * np.mean(errors):.1f} %"))
    legend.append((colour(_GREY), "calibrated"))
    title = f"Reliability, {test}"
    marks = [(name, round(100 * share, 2)) for name, share in level.lines()] if level else []
    dashed = f" Dashed: {', '.join(f'{name} {value:.1f} %' for name, value in marks)}." if marks else ""
    caption = f"Accuracy (%) of images by their confidence (%), in 15 bins of equal width.{dashed}"
    svg = draw_lines(lines, title, thin=len(runs) > 1, across="confidence, %", levels=[value for _, value in marks])
    return Figure(svg, title, caption, legend, _live(lines, legend, "confidence, %", marks))


def _risk(test: str, keys: Sequence[str], runs: Sequence[Mapping[str, Answers]], level: Levels | None) -> Figure:
    lines, legend = list[tuple[int, Series]](), list[tuple[str, str]]()
    for i, key in enumerate(keys):
        areas = list[float]()
        for found in (run[key] for run in runs if key in run):
            if found.confidence is not None:
                coverage, risk = risk_coverage(found.confidence, found.correct > 0.5)
                kept = np.unique(np.linspace(0, len(risk) - 1, min(len(risk), _POINTS)).round().astype(int))
                lines.append((i, Series(100 * coverage[kept], 100 * risk[kept], 1)))
                areas.append(aurc(found.confidence, found.correct > 0.5))
        legend.append((colour(i), f"{_protocol(key)}: AURC {100 * np.mean(areas):.1f} %"))
    title = f"Risk and coverage, {test}"
    # In words: lines at the errors of guesses would press the curves of good classifiers together.
    guesses = ", ".join(f"{name} has {100 - 100 * share:.1f} %" for name, share in level.lines()) if level else ""
    caption = "Error (%) among the most confident images, by the part of all images (%) that these are."
    caption += f" At any part, {guesses}." if guesses else ""
    svg = draw_lines(
        [(i, _thinned(one, len(lines))) for i, one in lines], title, thin=len(runs) > 1, across="coverage, %"
    )
    return Figure(svg, title, caption, legend, _live(lines, legend, "coverage, %"))


def _thinned(series: Series, lines: int) -> Series:
    """The curve as the still figure shows it."""
    kept = np.unique(
        np.linspace(0, len(series.steps) - 1, min(len(series.steps), points_of_each(lines))).round().astype(int)
    )
    return series._replace(steps=series.steps[kept], values=series.values[kept])


def _live(
    lines: Sequence[tuple[int, Series]],
    legend: Sequence[tuple[str, str]],
    across: str,
    marks: Sequence[tuple[str, float]] = (),
) -> LivePlot:
    names = dict(legend)
    found = [LiveLine(names[colour(i)].partition(":")[0], "", i, s.steps.tolist(), s.values.tolist()) for i, s in lines]
    return LivePlot(across, found, list(marks))


def _protocol(key: str) -> str:
    return key.partition("/")[2]
