"""Rows and paired differences of a table, computed from the results of several seeds.

Pipelines and reports share this file, so a number on the page equals the one in result.json.
"""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ...core.errors import UserError
from ...core.evaluate.definitions import range_of
from ...core.evaluate.intervals import mean_interval, paired_interval
from ...core.evaluate.looks import looks_of_rows, looks_words, merged_looks
from .oracles import DIAGNOSTIC, ORACLE, is_chosen_by_labels, is_ordered_by_labels

FEWEST_SEEDS = 3  # whose spread says enough of other seeds where nothing is known of test images

SPEED = "speed/features/ms_an_image"
_KINDS = (
    DIAGNOSTIC,
    "labelled",
    "transductive",
    "unrecorded",
    "inductive",
)  # of a row whose runs are of several: the first


def main_metric(result: Mapping[str, Any]) -> str:
    """The headline metric of a result: the first of its `metrics`. Raises UserError if it has none."""
    for name in result.get("metrics") or {}:
        return name
    raise UserError(
        f"the {result.get('task', 'stage')} result of {result.get('run', 'this run')} has no metric; "
        "a row needs a stage that evaluates (probe, finetune, adapt, or pretrain with data.test)"
    )


def metrics_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a result, and speed/features/ms_an_image where it was measured, which stands apart since it is the clock's."""
    speed = result.get("speed") or {}
    timed = {SPEED: speed["ms_an_image"]} if "ms_an_image" in speed else {}
    return {**(result.get("metrics") or {}), **timed}


def value_of(result: Mapping[str, Any], metric: str) -> float:
    """One metric of one result. Raises UserError, with the known metrics, if it is missing."""
    metrics = metrics_of(result)
    if metric in metrics:
        return float(metrics[metric])
    near = get_close_matches(metric, metrics, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = ", ".join(metrics) or "none"
    raise UserError(f"{result.get('run', 'this run')} has no metric {metric}{hint} (known: {known})")


def on_test(metric: str, test: str) -> str:
    """The same measurement on another test set: `target/knn/accuracy` on `source` is `source/knn/accuracy`."""
    return "/".join([test, *metric.rsplit("/", 2)[1:]])


def test_of(metric: str) -> str:
    """The test set of a metric named TEST/PROTOCOL/METRIC."""
    return metric.rsplit("/", 2)[0]


def kind_of(result: Mapping[str, Any]) -> str:
    """How much training saw of the evaluation images: `labelled`, also labels; `transductive`, images alone; `inductive`, nothing.

    `diagnostic` where labels of the target ordered the images, whatever else was seen.
    """
    if is_ordered_by_labels(result):
        return DIAGNOSTIC
    if result.get("seen_labelled"):
        return "labelled"
    seen = result.get("seen_unlabelled")
    if seen is None:
        return "unrecorded"
    return "transductive" if any(seen.values()) else "inductive"


def summarise(
    results: Sequence[Mapping[str, Any]],
    *,
    label: str,
    stage: str,
    metric: str | None = None,
    tests: Sequence[str] = (),
    also: Mapping[str, str] = {},
) -> dict[str, Any]:
    """One row of a table: one stage over its seeds.

    results: result.json of each seed. metric: TEST/PROTOCOL/METRIC, by default the headline metric.
    tests: further test sets on which the same metric is shown. also: {heading: metric} of further metrics. Both are left out
    unless every result has them.
    In the row, `low` and `high` are the 95 % t-interval over seeds (None for one run); `bootstrap` is the interval over test
    images that a single run computed. Raises UserError if a result lacks the metric.
    """
    metric = metric or main_metric(results[0])
    row: dict[str, Any] = {"label": label, "stage": stage, "metric": metric, **_spread(results, metric)}
    row["seeds"] = [result.get("seed") for result in results]
    kinds = {kind_of(result) for result in results}
    row["kind"] = next(kind for kind in _KINDS if kind in kinds)
    row["selection"] = sorted({str(result.get("selection", "last")) for result in results})
    if is_chosen_by_labels(row["selection"]):
        row["kind"] = ORACLE
    wanted = {test: on_test(metric, test) for test in tests if test != test_of(metric)} | dict(also)
    shared = {key: name for key, name in wanted.items() if all(name in metrics_of(r) for r in results)}
    if shared:
        row["beside"] = {key: {"metric": name, **_spread(results, name)} for key, name in shared.items()}
    if looks := _looks(results, [metric, *shared.values()]):
        row["looks"] = looks
    return row


def _looks(results: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """How often the labels of the tests of these metrics were looked at, by test; none where that was not counted."""
    tests = set(map(test_of, metrics))
    found = merged_looks(result.get("looks") or {} for result in results)
    return {test: look for test, look in found.items() if test in tests}


def looks_note(row: Mapping[str, Any]) -> str:
    """The looks of a row in words, once where they are the same for all its tests; "" if they were not counted."""
    words = {test: looks_words(look) for test, look in (row.get("looks") or {}).items()}
    if len(set(words.values())) <= 1:
        return next(iter(words.values()), "")
    return "; ".join(f"{test} {text}" for test, text in words.items())


def averaged(stages: Sequence[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """The results of several stages as one, for each seed that all have: the mean of each metric that all results have.

    stages: of each stage, its results, one a seed. One stage stays as it is.
    """
    if len(stages) == 1:
        return list(stages[0])
    by_seed = [{result.get("seed"): result for result in results} for results in stages]
    found = list[Mapping[str, Any]]()
    for seed in (seed for seed in by_seed[0] if all(seed in one for one in by_seed)):
        results = [one[seed] for one in by_seed]
        metrics = [name for name in results[0].get("metrics") or {} if all(name in r["metrics"] for r in results)]
        tests = [test for test in results[0].get("looks") or {} if all(test in (r.get("looks") or {}) for r in results)]
        found.append(
            {
                "seed": seed,
                "run": results[0].get("run"),
                "metrics": {
                    name: math.fsum(float(r["metrics"][name]) for r in results) / len(results) for name in metrics
                },
                "looks": {test: looks_of_rows([r["looks"][test] for r in results]) for test in tests},
                "selection": " and ".join(sorted({str(r.get("selection", "last")) for r in results})),
                "data": next(({"order": r["data"]["order"]} for r in results if is_ordered_by_labels(r)), {}),
                "seen_labelled": sum(r.get("seen_labelled") or 0 for r in results),
                "seen_unlabelled": _seen([r.get("seen_unlabelled") for r in results]),
            }
        )
    return found


def _seen(counts: Sequence[Mapping[str, int] | None]) -> dict[str, int] | None:
    """The sum over tasks; None if any did not record it."""
    if any(one is None for one in counts):
        return None
    names = dict.fromkeys(name for one in counts for name in one or {})
    return {name: sum((one or {}).get(name, 0) for one in counts) for name in names}


def compare(
    a: Mapping[str, Any], b: Mapping[str, Any], label: str, beyond: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The difference a - b of two rows, paired by seed, so that the seed's effect on both cancels.

    beyond: two rows c and d, for (a - b) - (c - d), an interaction; its sides are then called "(a − b)" and "(c − d)".
    There is no interval for one seed, nor for two whose differences are equal and not 0.
    Raises UserError if the rows share no seed.
    """
    rows = [a, b, *beyond]
    sides = [dict(zip(row["seeds"], row["values"], strict=True)) for row in rows]
    seeds = [seed for seed in sides[0] if all(seed in side for side in sides[1:])]
    if not seeds:
        named = " and ".join(str(row["label"]) for row in rows)
        raise UserError(f"{label}: {named} share no seed, so they cannot be paired; run all on the same seeds")
    columns = [[side[seed] for seed in seeds] for side in sides]
    first, second = (_differences(columns[:2]), _differences(columns[2:])) if beyond else columns
    mean, low, high = paired_interval(first, second, span=difference_span(rows))
    if mean and low == high and len(seeds) < FEWEST_SEEDS:  # two may agree by chance
        low = high = None
    names = [f"({x['label']} − {y['label']})" for x, y in (rows[:2], rows[2:])] if beyond else [a["label"], b["label"]]
    return {
        "label": label,
        "metric": a["metric"],
        "a": names[0],
        "b": names[1],
        "n": len(seeds),
        "mean": float(mean),
        "low": _finite(low),
        "high": _finite(high),
        "values": _differences([first, second]),
        "seeds": seeds,
    }


def difference_span(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The range of a - b of two rows, or of (a - b) - (c - d) of four, which no interval leaves."""
    low, high = span_of(rows[0]["metric"], [value for row in rows for value in row["values"]])
    for _ in range(len(rows) // 2):
        low, high = low - high, high - low
    return low, high


def _differences(columns: Sequence[Sequence[float]]) -> list[float]:
    return [one - other for one, other in zip(*columns, strict=True)]


def span_of(metric: str, values: Sequence[float]) -> tuple[float, float]:
    """The range of a metric, which no interval leaves; endless if a value of a file lies outside of it."""
    low, high = range_of(metric)
    return (low, high) if all(low <= value <= high for value in values) else (-math.inf, math.inf)


def _spread(results: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    values = [value_of(result, metric) for result in results]
    mean, low, high = mean_interval(values, span=span_of(metric, values))
    spread: dict[str, Any] = {
        "n": len(values),
        "mean": float(mean),
        "low": _finite(low),
        "high": _finite(high),
        "values": values,
    }
    bootstrap = (results[0].get("intervals") or {}).get(metric)
    if len(values) == 1 and bootstrap is not None and None not in bootstrap:
        spread["bootstrap"] = [float(bound) for bound in bootstrap]
    return spread


def _finite(bound: float | None) -> float | None:
    return None if bound is None or not math.isfinite(bound) else float(bound)
