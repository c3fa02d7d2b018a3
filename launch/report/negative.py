"""Negative transfer: a row whose baseline is better, by the interval of their difference over paired seeds.

The baseline is its control, source-only, or the classifier as it was trained: a run of source_only that keeps the head and takes no step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...core.evaluate.definitions import definition_of
from ...core.evaluate.intervals import negative_transfer
from .claims import stages_shown
from .contrasts import AnswersOf, difference_over_images
from .results import FEWEST_SEEDS, compare
from .tables import is_fraction, number

CONTROL, SOURCE_ONLY, UNADAPTED = "control", "source-only", "the classifier as it was trained"
TRANSFER_WEIGHTS = ("trade_off", "reversal")  # keys of methods of which 0 is the control
UNLIKE_DATA = (
    "strong",
    "order",
    "decode",
    "stamp",
    "selection",
)  # keys of `data` in which source-only may differ from a method

Baselines = Mapping[str, Mapping[str, str]]
"""Of each stage, the stages that a gain of it is counted from, and what each is: its control, source-only or UNADAPTED."""


def baselines_of(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Which stages are another one's baseline on its task. configs: resolved, by stage; those of other verbs don't count."""
    tasks = {name: config for name, config in configs.items() if _is_adaptation(config)}
    return {
        name: {other: kind for other, theirs in tasks.items() if other != name and (kind := _kind(config, theirs))}
        for name, config in tasks.items()
    }


def _is_adaptation(config: Mapping[str, Any]) -> bool:
    data, method = config.get("data"), config.get("method")
    return isinstance(data, Mapping) and isinstance(method, Mapping) and bool(data.get("source") and data.get("target"))


def _kind(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What the second config is to the first one; "" if nothing."""
    one, other = ours["method"], theirs["method"]
    if other.get("name") == "source_only":
        if one.get("name") == other["name"] or not _is_of_one_task(ours, theirs):
            return ""
        if other.get("keep_head") and theirs["optim"].get("duration") == 0:
            return UNADAPTED
        return SOURCE_ONLY if ours.get("optim") == theirs.get("optim") else ""
    if any(ours.get(key) != theirs.get(key) for key in ("data", "backbone", "optim", "label_shift")):
        return ""
    different = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return CONTROL if different and all(_is_off(key, one.get(key), other.get(key)) for key in different) else ""


def _is_of_one_task(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two configs have one task, the same pictures, augmentation and backbone.

    A row with other views, another corruption of the target or more steps is another experiment, and beside it a method may lose or win by
    these alone. Its bottleneck and head may be others: who adapts a classifier that is worse without adaptation has lost by that.
    """
    data, other = ours["data"], theirs["data"]
    alike = all(data.get(key) == other.get(key) for key in {**data, **other} if key not in UNLIKE_DATA)
    return alike and all(ours.get(key) == theirs.get(key) for key in ("backbone", "label_shift"))


def _is_off(key: str, ours: Any, theirs: Any) -> bool:
    """Whether a key of `method` differs in that the other config's transfer weight is 0."""
    if key == "mic" and isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return theirs.get("weight") == 0 and {**ours, "weight": 0} == {**theirs, "weight": 0}
    return key in TRANSFER_WEIGHTS and theirs == 0


def mark_negative_transfer(
    rows: Sequence[dict[str, Any]],
    baselines: Baselines,
    answers: AnswersOf | None = None,
    declared: Mapping[str, Collection[str]] = {},
) -> None:
    """Give each row that is worse than a baseline of it `negative_transfer`: [{"over": label, "kind", "mean", "low", "high", "n"}].

    A row of several stages is compared with one that has a baseline for each of them. One seed has no interval, so nothing is said of it.
    answers: of one run. Where predictions were kept, the interval over seeds and test images has to lie beyond 0, too: two seeds that lose
    as many of a few images have no spread, and yet show nothing. Where none were kept, three seeds are needed. declared: by the label of a
    row, those of the rows that a gain of it is counted from, as a config says: where no run's config says what it is, its control.
    """
    for row in rows:
        worse = []
        for other in rows:
            kind = kind_of_rows(row, other, baselines)
            if not kind and other["label"] in declared.get(row["label"], ()):
                kind = CONTROL
            if not kind or not set(row["seeds"]) & set(other["seeds"]):
                continue
            found = compare(row, other, row["label"])
            sign = _better(row["metric"])
            if not negative_transfer([sign * value for value in found["values"]], [0.0] * found["n"]):
                continue
            images = difference_over_images([row, other], answers)
            if images is None and found["n"] < FEWEST_SEEDS:
                continue
            low, high = images or (found["low"], found["high"])
            if low is not None and high is not None and (high < 0 if sign > 0 else low > 0):
                facts = {"mean": found["mean"], "low": low, "high": high, "n": found["n"]}
                worse.append({"over": other["label"], "kind": kind, **facts})
        if worse:
            row["negative_transfer"] = worse


def kind_of_rows(row: Mapping[str, Any], other: Mapping[str, Any], baselines: Baselines) -> str:
    """What another row is to a row by the configs of their stages: its control, source-only or UNADAPTED; "" if nothing."""
    ours, theirs = stages_shown(row), stages_shown(other)
    if other is row or len(ours) != len(theirs):
        return ""
    kinds = {next((baselines[a][b] for b in theirs if b in baselines.get(a, {})), "") for a in ours}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return kind if row["metric"] == other["metric"] or (kind == UNADAPTED and _is_alike(row, other)) else ""


def _is_alike(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both are of one metric on one test, as those of TEST/online/accuracy and TEST/classifier/accuracy."""
    (test, _, metric), (test_of_other, _, metric_of_other) = (one["metric"].rsplit("/", 2) for one in (row, other))
    return (test, metric) == (test_of_other, metric_of_other)


def _better(metric: str) -> int:
    found = definition_of(metric)
    return 1 if found is None or found.better == "higher" else -1


def negative_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each case of negative transfer in words. rows: of a pipeline's result.json."""
    lines = []
    for row in rows:
        fraction = is_fraction(row["metric"], row["values"])
        for one in row.get("negative_transfer") or []:
            mean, low, high = (
                number(one[key], 100, sign=True) if fraction else f"{one[key]:+.4g}" for key in ("mean", "low", "high")
            )
            name = one["over"] if one["over"].lower() == one["kind"] else f"{one['kind']} ({one['over']})"
            lines.append(
                f"Negative transfer: {row['label']} is worse than {'its ' if one['kind'] == CONTROL else ''}{name}, {mean}"
                f"{' points' if fraction else ''} (95 % interval [{low}, {high}], {one['n']} paired seeds; exploratory)."
            )
    return lines
