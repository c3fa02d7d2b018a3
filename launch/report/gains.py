"""A gain over several rows, such as control and source-only: all differences, and the smallest one, which alone counts as the gain.

A control can flatter: on PACS, art -> photo, BatchNorm over both domains alone costs ten points, and a method that only wins them back
gains nothing over source-only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.evaluate.definitions import definition_of

Bounds = tuple[float | None, float | None]


def gain_of(
    label: str, differences: Sequence[Mapping[str, Any]], metric: str, over_images: Sequence[Bounds] = ()
) -> dict[str, Any]:
    """The entry of `gains` in a pipeline's result.json. differences: of `compare`, all of one row a; metric: that row's.

    over_images: the intervals of these differences over seeds and test images; used if all have one, as `resampled` says then.

    It has what `compare` says of the smallest difference (of a metric that is better when it is lower: the largest), and: over (all rows b,
    with their differences), metric, holds (whether each difference's 95 % interval lies wholly on the better side of 0). So a gain holds
    only if it holds over every row: no further adjustment for having chosen the smallest is needed.
    """
    sign = _better(metric)
    resampled = {}
    if len(over_images) == len(differences):
        differences = [
            {**one, "low": low, "high": high} for one, (low, high) in zip(differences, over_images, strict=True)
        ]
        resampled = {"resampled": over_words(differences[0]["n"])}
    counts = min(differences, key=lambda one: sign * one["mean"])
    return {
        **counts,
        "label": label,
        "metric": metric,
        "over": [{key: one[key] for key in ("b", "mean", "low", "high", "n")} for one in differences],
        "holds": all(_above(one, sign) for one in differences),
        **resampled,
    }


def over_words(seeds: int) -> str:
    """What an interval over the test images of so many seeds is over."""
    return "seeds and images" if seeds > 1 else "images"


def gain_words(gain: Mapping[str, Any], unit: str, shown: Callable[[float], str]) -> str:
    """A gain as one sentence. shown: a number with its sign, in `unit`."""
    a, b, sign = gain["a"], gain["b"], _better(gain["metric"])
    bounds = "no interval"
    if gain["low"] is not None:
        over = f" over {gain['resampled']}" if gain.get("resampled") else ""
        bounds = f"95 % interval{over} [{shown(gain['low'])}, {shown(gain['high'])}]"
    each = " and ".join(f"{one['b']} ({shown(one['mean'])})" for one in gain["over"])
    which = "smaller" if len(gain["over"]) == 2 else "smallest"
    why = f"the {which} of its differences from {each}"
    measured = f"{shown(gain['mean'])}{unit} over {b}, {bounds}: {why}"
    if gain["holds"]:
        return f"{a} gains {measured}"
    if any(one["low"] is None for one in gain["over"]):
        return f"{a}: {measured}; no gain is shown without an interval"
    if any(_above(one, -sign) for one in gain["over"]):
        worse = " and ".join(one["b"] for one in gain["over"] if _above(one, -sign))
        return f"{a} is worse than {worse}: {measured}"
    unsure = " and ".join(one["b"] for one in gain["over"] if not _above(one, sign))
    return f"no gain of {a} is shown, since its difference from {unsure} may be 0: {measured}"


def _better(metric: str) -> int:
    """1 where higher is better, otherwise -1."""
    found = definition_of(metric)
    return 1 if found is None or found.better == "higher" else -1


def _above(difference: Mapping[str, Any], sign: int) -> bool:
    low, high = difference["low"], difference["high"]
    return low is not None and (low > 0 if sign > 0 else high < 0)
