"""The curves of a training as inline SVG, written by hand: with matplotlib, a page that compares 200 runs took minutes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy
from markupsafe import Markup, escape

from .figures import SERIES_COLOURS, Figure, LiveLine, LivePlot, colour, is_dotted, tick
from .levels import ACCURACY, HELD_OUT_SLICE, Levels
from .meanings import LAYER_GRADIENTS, meaning_of, metric_meaning

_NOT_CURVES = {"step", "epoch", "data_wait", "images_per_s", "seconds", "time"}
_POINTS = 160  # most points of a curve; all of a panel have a quarter more at most
_LIVE_POINTS = 600  # most points of a curve that the page's script draws; those of several runs have fewer
_PANELS = 20
_TITLES = {
    "watch/rankme": "RankMe",
    "watch/alpha_req": "alpha-ReQ",
    "watch/lidar": "LiDAR",
    "watch/uniformity": "Uniformity",
    "watch/alignment": "Alignment",
    f"{HELD_OUT_SLICE}loss": "Loss on held-out training images",
    f"{HELD_OUT_SLICE}raw_loss": "Loss on held-out training images, weights not averaged",
}
_ONLINE, _SLICE = "Online evaluation", "Accuracy on held-out training images"
_OF_SLICE = {
    f"{HELD_OUT_SLICE}accuracy": "weights that are judged",
    f"{HELD_OUT_SLICE}raw_accuracy": "weights of the last step, not averaged",
}
_OF_BATCHES = {"train_accuracy", "source_accuracy"}  # accuracies of classes, of images in training
_FEW = 25  # a curve of at most so many points shows them as dots
_WIDTH, _HEIGHT, _LETTER = 340.0, 210.0, 6.4  # the panel, and a letter of its text, in pixels
_RIGHT, _TOP, _BOTTOM = 3.0, 6.0, 36.0  # margins in pixels; the left one is as wide as the numbers on it


_HEALTH = {
    "Discriminator accuracy": ("domain_accuracy",),
    "Gradient of transfer over task": ("gradient_ratio", "turn2/gradient_ratio"),
    "Agreement of both heads": ("turn1/agreement",),
    "Agreement with the adversary": ("source_agreement", "target_agreement"),
    "Share of the target called unknown": ("unknown_target",),
    "Share above the threshold": ("confident",),
    "Share of pseudo-labels changed": ("pseudo_changed",),
    "Effective classes predicted": ("effective_classes", "candidate/effective_classes"),
}


class Series(NamedTuple):
    """A curve: steps and values, float [T] each, and how many logged steps a point is the mean of."""

    steps: numpy.ndarray
    values: numpy.ndarray
    binned: int


def curves(
    runs: Sequence[Sequence[Mapping[str, object]]],
    health: bool = False,
    names: Sequence[str] = (),
    levels: Mapping[str, Levels] = {},
    most: int = _PANELS,
) -> list[Figure]:
    """Panels of loss, online evaluation, learning rate and everything else that was logged; one line for each run (seed).

    health: whether `health_curves` shows its metrics, so that they are not among these. names: of the runs, as "seed 0". levels: chance and
    majority of each test, and as HELD_OUT_SLICE those of the held-out training images, drawn beside their accuracy. most: panels.
    """
    apart = {name for names in _HEALTH.values() for name in names} if health else set[str]()
    keys = dict.fromkeys(key for rows in runs for row in rows for key in row if key not in _NOT_CURVES | apart)
    accuracies = [key for key in keys if key.startswith("eval/") and key.endswith("/accuracy")]
    online = accuracies or [key for key in keys if key.startswith("eval/")]
    rates = [key for key in keys if key == "lr" or key.startswith("lr/")]
    elsewhere = {*rates, *_OF_SLICE, "loss"}
    rest = [key for key in keys if key not in elsewhere and not key.startswith(("eval/", LAYER_GRADIENTS))]
    rest = [key for key in rest if key != "skipped" or any(row.get(key) for rows in runs for row in rows)]
    panels = [
        ("Training loss", ["loss"]),
        (_ONLINE, online[:SERIES_COLOURS]),
        (_SLICE, [key for key in _OF_SLICE if key in keys]),
        ("Learning rate", rates[:SERIES_COLOURS]),
    ]
    rest.sort(key=lambda key: key not in _TITLES)  # what says most of features comes first
    panels += [(_TITLES.get(key, key.replace("_", " ")), [key]) for key in rest]
    figures: list[Figure] = []
    for title, keys in panels:
        if len(figures) < most and (figure := _panel(title, keys, runs, names, levels)) is not None:
            figures.append(figure)
    return figures


def health_curves(runs: Sequence[Sequence[Mapping[str, object]]], names: Sequence[str] = ()) -> list[Figure]:
    """Panels of what an adaptation logs of its health, for those metrics that were logged; the page shows them apart from the others."""
    logged = {key for rows in runs for row in rows for key in row}
    figures = (_panel(title, [key for key in keys if key in logged], runs, names) for title, keys in _HEALTH.items())
    return [figure for figure in figures if figure is not None]


def _panel(
    title: str,
    keys: Sequence[str],
    runs: Sequence[Sequence[Mapping[str, object]]],
    names: Sequence[str] = (),
    levels: Mapping[str, Levels] = {},
) -> Figure | None:
    named = names if len(names) == len(runs) else [""] * len(runs)
    pairs = [
        (i, key, name, _logged(rows, key)) for i, key in enumerate(keys) for rows, name in zip(runs, named, strict=True)
    ]
    logged = [(i, key, name, table) for i, key, name, table in pairs if len(table)]
    if not logged:
        return None
    lines = [(i, _binned(table, points_of_each(len(logged)))) for i, _, _, table in logged]
    percent = title in (_ONLINE, _SLICE) and all(
        series.values.min() >= 0 and series.values.max() <= 1 for _, series in lines
    )
    scale = 100 if percent else 1
    binned = max(series.binned for _, series in lines)
    scaled = [(i, series._replace(values=scale * series.values)) for i, series in lines]
    legend = [(colour(i), _short(key)) for i, key in enumerate(keys)] if len(keys) > 1 or title == _ONLINE else []
    marks = _marks(keys, levels) if percent else _chance(keys, levels)
    unit = "{:.1f} %" if percent else "{:.3f}"
    told = [
        f"{_sentence(title, keys, percent)}",
        "Dashed: " + ", ".join(f"{name} {unit.format(value)}" for name, value in marks) + "." if marks else "",
        f"A point is the mean of {binned} logged steps." if binned > 1 else "",
    ]
    svg = draw_lines(scaled, title, thin=len(runs) > 1, levels=[value for _, value in marks])
    fine = max(40, min(_LIVE_POINTS, 4 * _LIVE_POINTS // len(logged)))
    drawn = [(key, name, i, _binned(table, fine)) for i, key, name, table in logged]
    live = [LiveLine(_short(k), n, i, s.steps.tolist(), (scale * s.values).tolist()) for k, n, i, s in drawn]
    return Figure(svg, title, " ".join(filter(None, told)), legend, LivePlot("step", live, marks, smooth=True))


def _sentence(title: str, keys: Sequence[str], percent: bool) -> str:
    """What the panel's numbers mean. Several keys of one panel share their meaning, or are told apart by their names."""
    if percent and title == _SLICE:
        return "Accuracy, %: right images of the training images that are held out from training; higher is better."
    if percent:
        return "Accuracy, %: right images of all images, during the training; higher is better."
    meanings = list(dict.fromkeys(filter(None, map(meaning_of, keys))))
    return " ".join(meanings) if len(meanings) <= 2 else metric_meaning(keys[0])


def _marks(keys: Sequence[str], levels: Mapping[str, Levels]) -> list[tuple[str, float]]:
    """(name, percent) of chance, and of the most frequent class of each test where tests differ."""
    if set(keys) <= set(_OF_SLICE):
        known = {level.chance for level in levels.values()}
        own = levels.get(HELD_OUT_SLICE) or (Levels(known.pop(), None) if len(known) == 1 else None)
        return [(name, round(100 * value, 2)) for name, value in own.lines()] if own else []
    tests = dict.fromkeys(key.split("/")[1] for key in keys if key.endswith(f"/{ACCURACY}"))
    known = {test: levels[test].lines() for test in tests if test in levels}
    marks = dict[tuple[str, float], None]()
    for test, lines in known.items():
        for name, value in lines:
            own = f"{name} of {test}" if name != "chance" and len(known) > 1 else name
            marks[own, round(100 * value, 2)] = None
    return list(marks)[:4]


def _chance(keys: Sequence[str], levels: Mapping[str, Levels]) -> list[tuple[str, float]]:
    """Chance beside accuracies of training batches, fractions, if all tests have as many classes. Their majority is not known."""
    known = {level.chance for level in levels.values()}
    turned = {re.sub(r"^turn\d+/", "", key) for key in keys}  # of a method that takes several steps in turn
    return [("chance", known.pop())] if len(known) == 1 and turned <= _OF_BATCHES else []


def _logged(rows: Sequence[Mapping[str, object]], key: str) -> numpy.ndarray:
    """[T, 2]: the steps and values of the rows that have a step and a finite value."""
    pairs = [
        (step, value)
        for row in rows
        if isinstance(value := row.get(key), int | float)
        and isinstance(step := row.get("step"), int | float)
        and abs(value) < 1e300 and abs(step) < 1e300
    ]  # fmt: skip
    return numpy.array(pairs, dtype=float).reshape(-1, 2)


def points_of_each(lines: int) -> int:
    """Most points of a curve of a still figure with so many: together they have a quarter more than one may have."""
    return max(16, min(_POINTS, 5 * _POINTS // (4 * lines)))


def _binned(table: numpy.ndarray, most: int) -> Series:
    """Means over bins of [T, 2], so that there are at most `most`."""
    size = -(-len(table) // most) or 1
    if size > 1:
        table = numpy.array([table[start : start + size].mean(0) for start in range(0, len(table), size)])
    return Series(table[:, 0], table[:, 1], size)


def draw_lines(
    lines: Sequence[tuple[int, Series]],
    title: str,
    thin: bool,
    across: str = "step",
    levels: Sequence[float] = (),
    columns: Sequence[tuple[float, str]] = (),
    ranges: Sequence[tuple[int, float, float, float]] = (),
) -> Markup:
    """The panel. lines: (number of the colour, curve). thin: many lines, so each is drawn thinner and lets the others through.

    across: the name of the horizontal axis, whose ticks are whole numbers, or `columns`: (place, text). levels: heights of dashed lines.
    ranges: (number of the colour, place, low, high) of intervals.
    """
    low_x, high_x = _ends([series.steps for _, series in lines])
    beyond = [*levels, *(end for _, _, *ends in ranges for end in ends)]
    low_y, high_y = _ends([*(series.values for _, series in lines), *(numpy.array([level]) for level in beyond)])
    columns, up = columns or [(v, tick(v)) for v in ticks(low_x, high_x, 5, whole=True)], ticks(low_y, high_y, 5)
    left = 8 + _LETTER * max((len(tick(value)) for value in up), default=0)
    x_scale, y_scale = (_WIDTH - _RIGHT - left) / (high_x - low_x), (_HEIGHT - _TOP - _BOTTOM) / (high_y - low_y)
    floor = _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - low_x) * x_scale, floor - (y - low_y) * y_scale

    heights = [(value, place(low_x, value)[1]) for value in up]
    placed = [(text, place(value, low_y)[0]) for value, text in columns]
    grid = "".join(f"M{left:.1f} {y:.1f}H{_WIDTH - _RIGHT:g}" for _, y in heights)
    marks = "".join(f"M{x:.1f} {floor:g}v3" for _, x in placed)
    numbers = [f'<text x="{left - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick(v)}</text>' for v, y in heights]
    numbers += [f'<text x="{x:.1f}" y="{floor + 15:g}" text-anchor="middle">{text}</text>' for text, x in placed]
    dashes = "".join(f"M{left:.1f} {place(low_x, level)[1]:.1f}H{_WIDTH - _RIGHT:g}" for level in levels)
    drawn = [f'<path d="{dashes}" stroke="var(--muted)" stroke-dasharray="4 3"/>'] if levels else []
    for i, x, low, high in ranges:
        ends = "V".join(f"{place(x, end)[1]:.1f}" for end in (low, high))
        drawn.append(f'<path d="M{place(x, low)[0]:.1f} {ends}" stroke="{colour(i)}" stroke-width="1.4" opacity=".6"/>')
    for i, series in lines:
        points = [place(x, y) for x, y in zip(series.steps.tolist(), series.values.tolist(), strict=True)]
        path = "M" + "L ".join(f"{x:.1f} {y:.1f}" for x, y in points)
        width, opacity = ("1.1", ' opacity=".75"') if thin else ("1.6", "")
        dotted = ' stroke-dasharray="1.5 2.5"' if is_dotted(i) else ""
        drawn.append(f'<path d="{path}" stroke="{colour(i)}" stroke-width="{width}"{opacity}{dotted}/>')
        if len(points) <= _FEW and len(lines) <= 4:
            dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
            drawn.append(f'<path d="{dots}" stroke="{colour(i)}" stroke-width="4.4" stroke-linecap="round"{opacity}/>')
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(title)}" stroke-linejoin="round">'
        f'<path d="{grid}" stroke="var(--rule)" stroke-width=".8"/>'
        f'<path d="M{left:.1f} {floor:g}H{_WIDTH - _RIGHT:g}{marks}" fill="none" stroke="var(--muted)" stroke-width=".8"/>'
        f'<g fill="var(--muted)" font-size="11">{"".join(numbers)}'
        f'<text x="{_WIDTH - _RIGHT:g}" y="{_HEIGHT - 6:g}" text-anchor="end">{escape(across)}</text></g>'
        f'<g fill="none">{"".join(drawn)}</g></svg>'
    )


def _ends(values: Sequence[numpy.ndarray]) -> tuple[float, float]:
    """The ends of an axis: those of the values, with some room."""
    low, high = min(float(array.min()) for array in values), max(float(array.max()) for array in values)
    room = 0.04 * (high - low) or max(abs(high), 1e-12) * 0.05
    return low - room, high + room


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers between `low` and `high`, at most `most` + 1 and evenly spaced by 1, 2, 2.5 or 5 times a power of ten.

    whole: whole numbers only, as steps are.
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for factor in (1, 2, 2.5, 5, 10) if (step := factor * power) >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) if abs(step) > 1e-9 else k * step for k in range(first, last + 1)]


def _short(key: str) -> str:
    if key in _OF_SLICE:
        return _OF_SLICE[key]
    return key.removeprefix("eval/").removesuffix("/accuracy").removeprefix("lr/").replace("/", " · ")
