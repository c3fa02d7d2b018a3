"""Differences of two rows of a table: in points, or as they are where the metric is no fraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .tables import ResultTable, TableLine, axis_of, bounds_of, extent_of, is_fraction, number, plotted


def differences_table(comparisons: Sequence[Mapping[str, Any]], foot: str = "") -> ResultTable:
    """Table of the differences a - b, in percentage points, of metrics that are no fractions as they are, without a plot.

    Those of one seed have intervals over test images, if they have any. foot: what is said below instead of that.
    """
    low, high, ticks = axis_of([0.0, *(x * 100 for row in comparisons if in_points(row) for x in extent_of(row))])
    lines = [
        TableLine(
            label=row["label"],
            mean=difference_words(row),
            interval=difference_bounds(row, bounds_of(row)),
            n=row["n"],
            plot=plotted(row, 100, low, high) if in_points(row) else None,
            note=f"{row['a']} − {row['b']}" + ("" if row.get("primary", True) else " · exploratory"),
        )
        for row in comparisons
    ]
    several = max(row["n"] for row in comparisons) > 1
    unit = "percentage points" if any(map(in_points, comparisons)) else "difference"
    shown = any(line.interval for line in lines)
    return ResultTable("", unit, [], [("", lines)], ticks, [foot or _foot(comparisons)], shown, several)


def _foot(comparisons: Sequence[Mapping[str, Any]]) -> str:
    paired = "Differences are paired by seed: both runs of a seed have the same data splits and order."
    if max(row["n"] for row in comparisons) > 1:
        return f"{paired} Intervals are 95 % t-intervals of the mean difference over seeds."
    if any(one.get("over_images") for one in comparisons):
        over = "95 % intervals are over its test images and leave out the spread between seeds."
        return f"{paired} There is only one seed: {over}"
    return f"{paired} There is only one seed, so the differences have no interval; run more seeds to get one."


def in_points(difference: Mapping[str, Any]) -> bool:
    """Whether a difference is of fractions, and so told in percentage points. difference: of `compare`, or an effect of an attribution."""
    return difference.get("metric") is None or is_fraction(difference["metric"], [])


def difference_words(difference: Mapping[str, Any]) -> str:
    """Its mean with its sign: in points, and otherwise with the metric's name."""
    if in_points(difference):
        return number(difference["mean"], 100, sign=True)
    return f"{_signed(difference['mean'])} {difference['metric'].rpartition('/')[2]}"


def difference_bounds(difference: Mapping[str, Any], bounds: Sequence[float] | None) -> str:
    """ "[+0.3, +4.1]", in the unit of `difference_words`; "" for None."""
    if bounds is None:
        return ""
    shown = [number(bound, 100, sign=True) if in_points(difference) else _signed(bound) for bound in bounds]
    return f"[{', '.join(shown)}]"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")
