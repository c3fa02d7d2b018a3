"""Tables of results and of differences: the texts, and the positions of the marks in the small plot of each row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.evaluate.definitions import definition_of
from .claims import tasks_words
from .curves import ticks
from .levels import ACCURACY, LevelsOfStages, marks_of_rows, what_rows_measure
from .priors import legends, priors_words
from .results import looks_note, span_of, test_of

SELECTION = {
    "last": "The last iterate is reported; nothing was chosen by a result.",
    "train-split": "Hyper-parameters were chosen on a held-out part of the training data.",
    "source-val": "Chosen on held-out labelled images of the source domain.",
    "tuned-on-target": "Hyper-parameters were found while looking at labels of the target, so these numbers are "
    "optimistic for a new domain.",
    "rule": "Chosen by the default rule of label-free validators: a filter by source validation, then im.",
    "oracle": "Trained on labels of the target, or chosen with those of the test set: an upper bound, not a result.",
}
CAVEATS = ("tuned-on-target", "oracle")
KIND_HEADINGS = {
    "inductive": "Inductive: no evaluation image was seen in training, with or without its label",
    "transductive": "Transductive: evaluation images were seen in training, without their labels",
    "labelled": "Trained on evaluation images with their labels: no measure of what new images would give",
    "unrecorded": "Not recorded whether training saw evaluation images",
    "diagnostic": "Diagnostic: the target's images were met sorted by class, by their labels; shows where a method fails, and is no result",
    "oracle": "Oracle: trained on labels of the target, or chosen with those of the test set; an upper bound, not a result",
}


@dataclass(frozen=True)
class IntervalPlot:
    """Positions in percent of the plot's width."""

    mean: float
    low: float | None
    high: float | None
    values: list[float]


@dataclass(frozen=True)
class TableLine:
    label: str
    mean: str
    interval: str
    n: int
    plot: IntervalPlot | None
    note: str = ""
    beside: list[str] = field(default_factory=list)
    emphasis: bool = False


@dataclass(frozen=True)
class ResultTable:
    """One table of the page.

    groups: (heading or "", lines). ticks: (position in percent, text, is it zero). foot: sentences under the table.
    intervals: whether any line has one. several: whether any line has more than one run; if not, the foot says so. levels: (position in
    percent, name) of chance and of the most frequent class, where the axis reaches them.
    """

    heading: str
    unit: str
    columns: list[str]
    groups: list[tuple[str, list[TableLine]]]
    ticks: list[tuple[float, str, bool]]
    foot: list[str]
    intervals: bool
    several: bool
    levels: list[tuple[float, str]] = field(default_factory=list)


def caveats(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings about how numbers were chosen; each names its rows unless it concerns all of them."""
    sentences = []
    for selection in CAVEATS:
        # Of a mean over tasks, several selections stand in one text.
        concerned = [row["label"] for row in rows if any(selection in text.split(" and ") for text in row["selection"])]
        others = [row["label"] for row in rows if row["label"] not in concerned]
        if concerned and others:
            some = f"all but {_listed(others)}" if len(others) < len(concerned) else _listed(concerned)
            sentences.append(f"{SELECTION[selection]} This concerns {some}.")
        elif concerned:
            sentences.append(SELECTION[selection])
    return sentences


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, ["; ".join(names[:-1]), names[-1]]))


def selection_sentence(selection: str) -> str:
    return SELECTION.get(selection, f"Chosen by the label-free validator {selection}.")


def results_tables(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], levels: LevelsOfStages = {}
) -> list[ResultTable]:
    """One table for each kind of result, since inductive and transductive numbers must not be compared.

    columns: {TEST: heading}; each test set other than a row's own gets a column. levels: of the stages' tests, where they are known.
    """
    kinds = [kind for kind in KIND_HEADINGS if any(row["kind"] == kind for row in rows)]
    chosen = ([row for row in rows if row["kind"] == kind] for kind in kinds)
    only_inductive = kinds == ["inductive"]
    return [
        _results_table(part, columns, "" if only_inductive else KIND_HEADINGS[kind], levels)
        for kind, part in zip(kinds, chosen, strict=True)
    ]


def _results_table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], heading: str, levels: LevelsOfStages
) -> ResultTable:
    percent = all(is_fraction(row["metric"], row["values"]) for row in rows)
    scale = 100.0 if percent else 1.0
    low, high, ticks = axis_of([x * scale for row in rows for x in extent_of(row)])
    tests = list(dict.fromkeys(test for row in rows for test in row.get("beside", {})))
    # If the rows show different metrics, each row names its own, unless its label already does.
    mixed = len({row["metric"] for row in rows if row["label"] != row["metric"].rsplit("/", 1)[0]}) > 1
    mixed = mixed and len({(test_of(row["metric"]), row["metric"].rsplit("/", 1)[-1]) for row in rows}) > 1
    groups: dict[str, list[TableLine]] = {}
    for row in rows:
        line = TableLine(
            label=row["label"],
            mean=number(row["mean"], scale),
            interval=interval(row, scale),
            n=row["n"],
            plot=plotted(row, scale, low, high),
            note=" · ".join(
                filter(
                    None,
                    [
                        row.get("note"),
                        row.get("oracle"),
                        row["metric"] if mixed else "",
                        priors_words(row),
                        tasks_words(row.get("tasks")),
                        looks_note(row),
                    ],
                )
            ),
            beside=[number(row["beside"][t]["mean"], scale) if t in row.get("beside", {}) else "–" for t in tests],
            emphasis=bool(row.get("emphasis")),
        )
        groups.setdefault(row.get("group") or "", []).append(line)
    return ResultTable(
        heading=heading,
        unit=_unit(rows, columns, percent),
        columns=[columns.get(test, "F1" if test == "f1" else test) for test in tests],
        groups=list(groups.items()),
        ticks=ticks,
        foot=[*what_rows_measure(rows, levels), *_foot(rows)]
        + ([] if heading else ["No evaluation image was seen in training, with or without its label (inductive)."]),
        intervals=any(line.interval for lines in groups.values() for line in lines),
        several=any(row["n"] > 1 for row in rows),
        levels=_marks(rows, levels, low, high) if percent else [],
    )


def _marks(
    rows: Sequence[Mapping[str, Any]], levels: LevelsOfStages, low: float, high: float
) -> list[tuple[float, str]]:
    """Where chance and the most frequent class stand in the small plots, if the rows share them and the axis reaches them."""
    if any(row["metric"].rsplit("/", 1)[-1] != ACCURACY for row in rows):
        return []
    found = marks_of_rows(rows, levels)
    lines = found.lines() if found else []
    return [(_percent(100 * value, low, high), name) for name, value in lines if low <= 100 * value <= high]


def is_fraction(metric: str, values: Sequence[float]) -> bool:
    found = definition_of(metric)
    shown = found.percent if found is not None else "loss" not in metric.rsplit("/", 1)[-1]
    return shown and all(0 <= value <= 1 for value in values)


def number(value: float, scale: float = 100.0, *, sign: bool = False) -> str:
    text = f"{value * scale:+.1f}" if sign else f"{value * scale:.1f}" if scale == 100 else f"{value * scale:.4g}"
    return text.replace("-", "−")


def interval(row: Mapping[str, Any], scale: float, *, sign: bool = False) -> str:
    bounds = bounds_of(row)
    return "" if bounds is None else f"[{number(bounds[0], scale, sign=sign)}, {number(bounds[1], scale, sign=sign)}]"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def bounds_of(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The t-interval over seeds; for a single run or the difference of two, the interval over test images."""
    over_images = row.get("bootstrap") or row.get("over_images") or (None, None)
    low, high = (row.get("low"), row.get("high")) if row.get("low") is not None else over_images
    if low is None or high is None:
        return None
    # Rows that an earlier version wrote may have intervals that leave the metric's range; those of a difference have no metric.
    least, most = span_of(row["metric"], row["values"]) if "metric" in row else (-1.0, 1.0)
    within = all(least <= value <= most for value in row["values"])
    return (max(low, least), min(high, most)) if within else (low, high)


def extent_of(row: Mapping[str, Any]) -> list[float]:
    return [row["mean"], *row["values"], *(bounds_of(row) or ())]


def axis_of(values: Sequence[float]) -> tuple[float, float, list[tuple[float, str, bool]]]:
    """(low end, high end, ticks) of the plots' axis; a tick is (percent of the width, text, is it zero)."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.04, 1e-3 * max(abs(high), 1e-3))
    low, high = low - room, high + room
    shown = [value for value in ticks(low, high, 6) if low <= value <= high]
    return (
        low,
        high,
        [(_percent(value, low, high), f"{value:g}".replace("-", "−"), abs(value) < 1e-12) for value in shown],
    )


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def plotted(row: Mapping[str, Any], scale: float, low: float, high: float) -> IntervalPlot:
    bounds = bounds_of(row)
    ends = (None, None) if bounds is None else tuple(_percent(bound * scale, low, high) for bound in bounds)
    values = [_percent(value * scale, low, high) for value in row["values"]] if row["n"] > 1 else []
    return IntervalPlot(_percent(row["mean"] * scale, low, high), ends[0], ends[1], values)


def _unit(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], percent: bool) -> str:
    """The heading of the main column, e.g. `accuracy on digits-m, %`, for what all rows share."""
    names = {row["metric"].rsplit("/", 1)[-1] for row in rows}
    tests = {test_of(row["metric"]) for row in rows}
    text = names.pop() if len(names) == 1 else "value"
    if len(tests) == 1 and (test := tests.pop()) != "test":
        text += f" on {columns.get(test, test)}"
    return f"{text}, %" if percent else text


def _foot(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = sorted({row["n"] for row in rows})
    single = [row for row in rows if row["n"] == 1]
    foot = []
    if counts == [1]:
        foot.append("Every number is one run.")
    elif single:
        foot.append("n is the number of runs, each with its own seed.")
    if counts[-1] > 1:
        seeds = f"{counts[-1]} seeds" if len(counts) == 1 else "seeds"
        foot.append(f"Mean and 95 % t-interval over {seeds}; small dots are single seeds.")
    if any(row.get("bootstrap") for row in single):
        foot.append(
            "Intervals of a single run are 95 % bootstrap intervals over its test images (of a protocol that repeats, of accuracy over "
            "its draws); they leave out the spread between seeds."
        )
    return [*foot, *legends(rows)]
