"""What a page says first: its verdict in one sentence, from the numbers that stand below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.evaluate.definitions import definition_of
from ...core.printable import capital
from .claims import claim_words
from .gains import gain_words, over_words
from .levels import Levels, levels_for
from .oracles import DIAGNOSTIC, ORACLE
from .pairs import SURE, Pairs
from .records import StageRuns
from .tables import duration, interval, is_fraction, number

_NO_RESULTS = (DIAGNOSTIC, ORACLE, "labelled")  # kinds of rows that measure nothing for new images


def verdict_of_table(
    rows: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    gains: Sequence[Mapping[str, Any]],
    contrasts: Mapping[str, Any] | None = None,
) -> str:
    """Of a pipeline: its first primary contrast, else its gain or difference of an emphasised row, else its best row."""
    if contrasts and contrasts["primary"]:
        one = contrasts["primary"][0]
        words = claim_words(one, " points" if is_fraction(one["metric"], []) else "", _signed(one["metric"]))
        return f"{capital(one['label'])}: {words}."
    emphasised = {row["label"] for row in rows if row.get("emphasis")}
    for found, words in ((gains, _gain), (comparisons, _difference)):
        chosen = [one for one in found if one["a"] in emphasised] or list(found)
        if chosen:
            return words(chosen[0], rows)
    return _best(rows)


def _gain(gain: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    words = gain_words(gain, " points" if is_fraction(gain["metric"], []) else "", _signed(gain["metric"]))
    return f"{capital(words)}."


def _difference(one: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """ "CDAN is 3.1 points above its control (95 % interval [1.0, 5.2], 5 seeds)." and what that shows."""
    metric = next((row["metric"] for row in rows if row["label"] == one["a"]), "")
    shown = _signed(metric)
    unit = " points" if is_fraction(metric, []) else f" of {metric.rsplit('/', 1)[-1]}"
    what = f"{one['a']} − {one['b']} is {shown(one['mean'])}{unit}"
    seeds = "one seed" if one["n"] == 1 else f"{one['n']} seeds"
    low, high = one.get("over_images") or (one["low"], one["high"])
    if low is None or high is None or (one["n"] == 1 and not one.get("over_images")):
        return f"{what} in {seeds}, which shows no difference yet."
    over = f" over {over_words(one['n'])}" if one.get("over_images") else ""
    facts = f"95 % interval{over} [{shown(low)}, {shown(high)}], {seeds}"
    if low <= 0 <= high:
        return f"No difference is shown: {what} ({facts})."
    better = (low > 0) == (_better(metric) == "higher")
    return f"{one['a']} is {'better' if better else 'worse'} than {one['b']}: {shown(one['mean'])}{unit} ({facts})."


def _best(rows: Sequence[Mapping[str, Any]]) -> str:
    """The best of the rows of the first one's metric and kind; rows that are no results don't count."""
    honest = [row for row in rows if row["kind"] not in _NO_RESULTS]
    if not honest:
        return ""
    metric = honest[0]["metric"]
    alike = [row for row in honest if _name(row["metric"]) == _name(metric) and row["kind"] == honest[0]["kind"]]
    best = (max if _better(metric) == "higher" else min)(alike, key=lambda row: row["mean"])
    which = f"The best of {len(alike)} rows is {best['label']}" if len(alike) > 1 else best["label"]
    return f"{which}: {_value(best)}."


def verdict_of_runs(
    stages: Sequence[StageRuns],
    rows: Sequence[Mapping[str, Any]],
    levels: Mapping[str, Mapping[str, Levels]],
    pairs: Pairs,
) -> str:
    """Of one experiment: its headline number beside chance; of several: the best one, and whether the images show a difference."""
    if not rows:
        return _unmeasured(stages)
    if len(stages) > 1:
        if len(stages) == 2 and pairs.lines:
            return pairs.lines[0].sentence
        shown = [line for line in pairs.lines if line.adjusted < SURE]
        judged = f" {len(shown)} of {len(pairs.lines)} comparisons by image show a difference." if pairs.lines else ""
        return f"{_best(rows)}{judged}".strip()
    row, found = rows[0], levels_for(levels.get(stages[0].name, {}), rows[0]["metric"])
    parts = row["metric"].rsplit("/", 2)
    beside = f"; {found.words()}" if found else ""
    return f"{capital(_value(row))}{f' ({parts[-2]})' if len(parts) > 1 else ''}{beside}.{_judged(row, found)}"


def _judged(row: Mapping[str, Any], levels: Levels | None) -> str:
    low = row["low"] if row.get("low") is not None else (row.get("bootstrap") or [None])[0]
    if levels is None or low is None:
        return ""
    floor = max(levels.chance, levels.majority or 0.0)
    return "" if low > floor else " It is not shown to be better than a constant guess."


def _unmeasured(stages: Sequence[StageRuns]) -> str:
    """Of runs without a metric: how far the loss has come, which says little of the features."""
    stage = stages[0]
    losses = [row["loss"] for row in stage.first.rows if isinstance(row.get("loss"), int | float)]
    if len(stages) > 1 or not losses:
        return ""
    state = "finished" if stage.first.finished else "unfinished"
    seconds = float(stage.first.result.get("seconds") or 0)
    time = f" in {duration(seconds)}" if seconds else ""
    probe = (
        " No labelled test was scored, so a probe has to say whether the features are good."
        if state == "finished"
        else ""
    )
    return f"{capital(state)}: the loss went from {losses[0]:.3g} to {losses[-1]:.3g}{time}.{probe}"


def _value(row: Mapping[str, Any]) -> str:
    """ "accuracy 79.9 % [77.5, 82.2] on target, 5 seeds" """
    scale = 100.0 if is_fraction(row["metric"], row["values"]) else 1.0
    bounds = interval(row, scale)
    name, test = _name(row["metric"]), row["metric"].rsplit("/", 2)[0]
    where = f" on {test}" if test != "test" else ""
    seeds = f", mean of {row['n']} seeds" if row["n"] > 1 else ", one run"
    return f"{name} {number(row['mean'], scale)}{' %' if scale == 100 else ''}{f' {bounds}' if bounds else ''}{where}{seeds}"


def _name(metric: str) -> str:
    return metric.rsplit("/", 1)[-1].replace("_", " ")


def _better(metric: str) -> str:
    found = definition_of(metric)
    return "higher" if found is None else found.better


def _signed(metric: str) -> Callable[[float], str]:
    return (lambda value: number(value, 100, sign=True)) if is_fraction(metric, []) else (lambda value: f"{value:+.4g}")
