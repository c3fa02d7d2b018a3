"""The plots of a sweep's page, in the style of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ...core.printable import capital
from ..report.figures import Figure, colour, ink, render, tick
from ..report.levels import Levels
from .cost import COST_UNITS, cost_in_words
from .result import BEYOND_BUDGET, brief, short_names

_MAIN, _BEST, _MUTED = ink(0), ink(1), ink(7)
_UPRIGHT = 6  # names of parameters that stand side by side
_LEGEND = [(colour(0), "trial"), (colour(1), "best trial")]


def figures(
    result: Mapping[str, Any],
    search: Mapping[str, Any],
    rows: Mapping[int, Sequence[Mapping[str, Any]]],
    level: Levels | None = None,
) -> list[Figure]:
    """All plots of a finished sweep. search: of its config. rows: by trial, the objective during training, if it was measured.

    level: of the objective, if it is an accuracy: dashed lines where the axis reaches them, and a sentence.
    """
    done = [trial for trial in result["trials"] if trial["value"] is not None]
    if not done:
        return []
    owner = result["run"]
    drawn = [_front(done, result, owner, level)] if result.get("front") else []
    drawn.append(_history(done, result, owner, level))
    if result["importance"]:
        drawn.append(_importance(result["importance"], owner, len(done)))
    if any(rows.values()):
        drawn.append(_training_curves(rows, result, owner, level))
    names = short_names(list(search))
    drawn += [_slice(done, key, names[key], search[key], result, owner, level) for key in search]
    if len(search) > 1:
        drawn.append(_parallel(done, search, result, owner))
    return drawn


def _guesses(axes: Axes, level: Levels | None) -> None:
    """Dashed lines of chance and the most frequent class, where the axis reaches them: the trials have to be told apart."""
    low, high = axes.get_ylim()
    for _, value in level.lines() if level else ():
        if low <= value <= high:
            axes.axhline(value, color=_MUTED, linestyle="--", linewidth=0.8)


def _level_words(level: Levels | None) -> str:
    return f" {capital(level.words())}." if level else ""


def _history(done: Sequence[Mapping[str, Any]], result: Mapping[str, Any], owner: str, level: Levels | None) -> Figure:
    better = max if result["direction"] == "maximize" else min
    numbers, values = [t["number"] for t in done], [t["value"] for t in done]

    def draw(axes: Axes) -> None:
        axes.step(numbers, list(accumulate(values, better)), where="post", color=_BEST, linewidth=1.4)
        axes.plot(numbers, values, "o", color=_MAIN, markersize=4.5)
        axes.set_xlabel("trial", loc="right")
        _guesses(axes, level)

    legend = [(colour(0), "trial"), (colour(1), "best so far")]
    return Figure(
        render(draw, "History", owner), "History", f"{_direction_in_words(result)}.{_level_words(level)}", legend
    )


def _front(done: Sequence[Mapping[str, Any]], result: Mapping[str, Any], owner: str, level: Levels | None) -> Figure:
    """The objective against the cost: all trials, the front as steps, and the budget; a tick below for what cost too much."""
    cost, front = result["cost"], result["front"]
    left_out = [trial["cost"] for trial in result["trials"] if trial["state"] == BEYOND_BUDGET]

    def draw(axes: Axes) -> None:
        axes.plot([t["cost"] for t in done], [t["value"] for t in done], "o", color=_MAIN, markersize=4.5, alpha=0.6)
        costs, values = [point["cost"] for point in front], [point["value"] for point in front]
        axes.step(costs, values, where="post", color=_BEST, linewidth=1.4)
        axes.plot(costs, values, "o", color=_BEST, markersize=6)
        if cost["budget"] is not None:
            axes.axvline(cost["budget"], color=_MUTED, linestyle="--", linewidth=0.8)
        if left_out:
            foot = axes.get_xaxis_transform()  # y in parts of the panel's height
            axes.plot(left_out, [0.02] * len(left_out), "|", color=_MUTED, markersize=7, transform=foot)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cost_in_words(value)))
        axes.set_xlabel(COST_UNITS[cost["name"]], loc="right")
        _guesses(axes, level)

    legend = [(colour(0), "trial"), (colour(1), "Pareto front")]
    if cost["budget"] is not None:
        legend.append((colour(7), "budget; a tick is a point beyond it" if left_out else "budget"))
    told = f"{_direction_in_words(result)}, {cost['name']}: lower is better.{_level_words(level)}"
    return Figure(render(draw, "Pareto front", owner), "Pareto front", told, legend)


def _direction_in_words(result: Mapping[str, Any]) -> str:
    return f"{result['objective']}, {'higher' if result['direction'] == 'maximize' else 'lower'} is better"


def _importance(shares: Mapping[str, float], owner: str, trials: int) -> Figure:
    names = short_names(list(shares))
    labels, widths = [names[key] for key in shares][::-1], list(shares.values())[::-1]

    def draw(axes: Axes) -> None:
        axes.barh(range(len(widths)), [100 * width for width in widths], height=0.55, color=_MAIN)
        axes.yaxis.set_major_locator(FixedLocator(range(len(labels))))
        axes.yaxis.set_major_formatter(FixedFormatter(labels))
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.set_xlabel("% of the variance", loc="right")

    return Figure(render(draw, "Importance", owner), "Importance", f"fANOVA of {trials} trials; rough if they are few")


def _training_curves(
    rows: Mapping[int, Sequence[Mapping[str, Any]]], result: Mapping[str, Any], owner: str, level: Levels | None
) -> Figure:
    best = result["best"]["number"]

    def draw(axes: Axes) -> None:
        for number, points in sorted(rows.items(), key=lambda item: item[0] == best):
            steps, values = [p["step"] for p in points], [p["value"] for p in points]
            own = (
                {"color": _BEST, "linewidth": 1.8}
                if number == best
                else {"color": _MAIN, "linewidth": 1.0, "alpha": 0.6}
            )
            axes.plot(steps, values, marker="o" if len(points) < 4 else "", markersize=3, **own)
        axes.set_xlabel("step", loc="right")
        _guesses(axes, level)

    told = f"The objective during training.{_level_words(level)}"
    return Figure(render(draw, "While training", owner), "While training", told, _LEGEND)


def _slice(
    done: Sequence[Mapping[str, Any]],
    key: str,
    name: str,
    span: Mapping[str, Any],
    result: Mapping[str, Any],
    owner: str,
    level: Levels | None,
) -> Figure:
    """The objective against one parameter."""
    best = result["best"]["number"]
    positions = {trial["number"]: _position(trial["params"][key], span) for trial in done}

    def draw(axes: Axes) -> None:
        for trial in sorted(done, key=lambda t: t["number"] == best):
            own = {"color": _BEST, "markersize": 7} if trial["number"] == best else {"color": _MAIN, "markersize": 4.5}
            axes.plot(positions[trial["number"]], trial["value"], "o", **own)
        if span.get("log"):
            axes.set_xscale("log")
            axes.set_xlim(span["log"][0] / 1.1, span["log"][1] * 1.1)
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0,) if _decades(span["log"]) >= 2 else (1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: brief(float(value))))
            axes.xaxis.set_minor_locator(NullLocator())
        elif span.get("choice"):
            axes.xaxis.set_major_locator(FixedLocator(range(len(span["choice"]))))
            axes.xaxis.set_major_formatter(FixedFormatter([_label(value) for value in span["choice"]]))
            axes.set_xlim(-0.5, len(span["choice"]) - 0.5)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=bool(span.get("int"))))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        _guesses(axes, level)

    title = f"By {name}"
    return Figure(render(draw, title, owner), title, _level_words(level).strip(), _LEGEND)


def _parallel(
    done: Sequence[Mapping[str, Any]], search: Mapping[str, Any], result: Mapping[str, Any], owner: str
) -> Figure:
    """Parallel coordinates: one line per trial through all parameters; the better half in colour, the best one highlighted."""
    sign = -1 if result["direction"] == "maximize" else 1
    ranked = sorted(done, key=lambda t: sign * t["value"])
    names = short_names(list(search))

    def draw(axes: Axes) -> None:
        for rank, trial in reversed(list(enumerate(ranked))):
            heights = [_height(trial["params"][key], search[key]) for key in search]
            shade = _BEST if rank == 0 else _MAIN if rank < len(ranked) / 2 else _MUTED
            axes.plot(
                range(len(heights)),
                heights,
                color=shade,
                linewidth=2.0 if rank == 0 else 1.0,
                alpha=1 if rank == 0 else 0.55,
            )
        for column, key in enumerate(search):
            axes.axvline(column, color="#020202", linewidth=0.8)
            for end, y in _ends(search[key]):
                axes.annotate(end, (column, y), (4, -3), textcoords="offset points", fontsize=8, color="#010101")
        axes.xaxis.set_major_locator(FixedLocator(range(len(search))))
        axes.xaxis.set_major_formatter(FixedFormatter([names[key] for key in search]))
        if len(search) > _UPRIGHT:
            axes.tick_params(axis="x", labelrotation=60, labelsize=7)
        axes.yaxis.set_major_locator(NullLocator())
        axes.set_xlim(-0.15, len(search) - 0.6)
        axes.set_ylim(-0.06, 1.06)

    legend = [(colour(1), "best trial"), (colour(0), "better half"), (colour(7), "worse half")]
    return Figure(
        render(draw, "All together", owner),
        "All together",
        "each line is a trial, each column a parameter's range",
        legend,
    )


def _position(value: Any, span: Mapping[str, Any]) -> float:
    return float(span["choice"].index(value)) if span.get("choice") else float(value)


def _height(value: Any, span: Mapping[str, Any]) -> float:
    """0..1 within the parameter's range."""
    if span.get("choice"):
        return span["choice"].index(value) / max(1, len(span["choice"]) - 1)
    low, high = span.get("log") or span.get("uniform") or span["int"]
    if span.get("log"):
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def _ends(span: Mapping[str, Any]) -> list[tuple[str, float]]:
    named = span.get("choice") or span.get("log") or span.get("uniform") or span["int"]
    return [(_label(value), _height(value, span)) for value in named]


def _label(value: Any) -> str:
    text = brief(value["name"] if isinstance(value, dict) and "name" in value else value)
    return text if len(text) <= 14 else f"{text[:13]}…"


def _decades(ends: Sequence[float]) -> float:
    return math.log10(ends[1] / ends[0])
