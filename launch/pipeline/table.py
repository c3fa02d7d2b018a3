"""The table of a pipeline: rows, differences and gains, from the results of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.claims import stages_shown, tasks_of
from ..report.contrasts import AnswersOf, difference_over_images
from ..report.gains import gain_of
from ..report.negative import Baselines, kind_of_rows, mark_negative_transfer
from ..report.oracles import mark_oracles
from ..report.priors import priors_of
from ..report.results import averaged, compare, summarise, test_of
from .checks import rows_named, subtracted


def tabulate(
    report: Mapping[str, Any],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    domains: Mapping[str, Sequence[str]] = {},
    inputs: Mapping[str, Sequence[str]] = {},
    baselines: Baselines = {},
    answers: AnswersOf | None = None,
) -> dict[str, Any]:
    """The pipeline's result.json. report: the resolved section. results, domains, inputs, baselines: of each stage, one result per seed,
    its domains, the stages that it starts from, and its control and source-only. answers: of one run, None where they are not at hand.
    """
    measured = [name for name, found in results.items() if found[0].get("metrics")]
    wanted: list[Mapping[str, Any]] = report["rows"] or [{"label": name, "stage": name} for name in measured]
    rows = []
    for entry in wanted:
        row = summarise(
            averaged([results[name] for name in stages_shown(entry)]),
            label=entry["label"],
            stage=entry["stage"],
            metric=entry.get("metric"),
            tests=list(report["columns"]),
            also=entry.get("also", {}),
        )
        if len(shown := stages_shown(entry)) > 1:
            row["tasks"] = tasks_of([domains.get(name, ()) for name in shown])
        if priors := priors_of([results[name] for name in shown], test_of(row["metric"])):
            row["priors"] = priors
        rows.append(row | {key: entry[key] for key in ("stages", "group", "note", "emphasis") if entry.get(key)})
    mark_oracles(rows, results, inputs)
    entries = report["comparisons"]
    declared = {
        rows_named(rows, one["a"])[0]["label"]: _labels(rows, subtracted(one)) for one in entries if one.get("over")
    }
    mark_negative_transfer(rows, baselines, answers, declared)
    return {"task": "pipeline", "rows": rows, **_differences(entries, rows, answers, baselines)}


def _labels(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    return [row["label"] for name in names for row in rows_named(rows, name)]


def _differences(
    entries: Sequence[Mapping[str, Any]],
    rows: Sequence[dict[str, Any]],
    answers: AnswersOf | None,
    baselines: Baselines,
) -> dict[str, Any]:
    """The entries `comparisons` (differences of two rows) and, where any is over several rows, `gains` of a pipeline's result.

    All have intervals over seeds and test images, too, as primary contrasts do, where predictions were kept: `over_images`. A gain is
    counted from the rows that its entry names and from every other baseline of its row that the table has: a second source-only, say, with
    another bottleneck, which may be the better one.
    """
    comparisons, gains = list[dict[str, Any]](), list[dict[str, Any]]()
    kind = any(entry.get("primary") for entry in entries)
    for entry in entries:
        (a,), label = rows_named(rows, entry["a"]), entry["label"]
        others = [rows_named(rows, name)[0] for name in subtracted(entry)]
        if entry.get("over"):
            others += [row for row in rows if row not in others and kind_of_rows(a, row, baselines)]
        beyond = [rows_named(rows, name)[0] for name in entry.get("beyond", ())]
        found = [compare(a, b, f"{label}, over {b['label']}" if len(others) > 1 else label, beyond) for b in others]
        over = [difference_over_images([a, b, *beyond], answers) for b in others]
        if len(others) > 1:
            gains.append(gain_of(label, found, a["metric"], [one for one in over if one is not None]))
        found = [
            one if bounds is None else {**one, "over_images": list(bounds)}
            for one, bounds in zip(found, over, strict=True)
        ]
        comparisons += [one | ({"primary": bool(entry.get("primary"))} if kind else {}) for one in found]
    return {"comparisons": comparisons, **({"gains": gains} if gains else {})}
