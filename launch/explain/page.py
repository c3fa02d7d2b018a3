"""The page of an explanation: one file with all pictures, the numbers of each kind of map, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...core.printable import capital
from ..report.html import write_html
from .contents import Explained

GUIDE = (
    "Bright places speak for the class. A map is worth looking at only if it depends on what the network has learned: the sanity check "
    "draws the weights anew from the head down, and the map must change. Deletion and insertion say whether the network's answer follows "
    "the places that a map ranks highest; a map that does no better than random order ranks nothing. No map proves why a network answered "
    "as it did."
)


class PictureRow(NamedTuple):
    """A picture on the page. entry: of result.json. panels: (source, name), the picture first. near: (source, caption)."""

    entry: Mapping[str, Any]
    panels: list[tuple[str, str]]
    near: list[tuple[str, str]]

    @property
    def caption(self) -> str:
        """Name, explained class and true class."""
        told = self.entry
        label = told.get("label")
        true = f", labelled {label}" if label is not None and label != told["class"] else ""
        return f"{told['name']}: {told['class']}, {100 * told['probability']:.0f} %{true}"


class NumberTable(NamedTuple):
    """heading, names of the columns, and rows of texts; foot: sentences below."""

    heading: str
    columns: list[str]
    rows: list[list[str]]
    foot: list[str]


class ExplainPage(NamedTuple):
    """What the template explain.html.j2 shows."""

    title: str
    summary: str
    text: list[str]
    caveats: list[str]
    tables: list[NumberTable]
    rows: list[PictureRow]
    methods: list[tuple[str, str]]
    facts: list[tuple[str, str]]


def write_explanation(page: ExplainPage, out: Path) -> Path:
    """Write the page; returns its path."""
    return write_html("explain.html.j2", page, out)


def page_of(found: Explained, result: Mapping[str, Any], rows: list[PictureRow]) -> ExplainPage:
    """result: the content of result.json."""
    methods: Mapping[str, Any] = result["methods"]
    tables = [_sanity(methods), _curves(methods), _pointing(methods)]
    which = "the predicted class" if result["class"] == "predicted" else f"class: {result['class']}"
    return ExplainPage(
        title=f"What {found.trained.backbone.spec['name']} looked at",
        summary=f"{found.shown} of {len(found.images)} pictures, of each {which}; run {found.trained.folder}",
        text=[GUIDE],
        caveats=caveats_of(methods),
        tables=[table for table in tables if table is not None],
        rows=rows,
        methods=[(name, told["what"]) for name, told in methods.items()],
        facts=[
            ("run", str(result["run"])),
            ("weights", result["weights"]),
            (
                "pictures",
                f"{result['data']['uri']}, {result['data']['images']} of them, split {result['data']['split'][:12]}",
            ),
            ("view", found.trained.view.in_words()),
            ("seed", str(result["seed"])),
            *(("left out", sentence) for sentence in result["left_out"]),
        ],
    )


def caveats_of(methods: Mapping[str, Any]) -> list[str]:
    """A sentence for each map that did not pass or has no verdict, that is constant somewhere, or that is not complete."""
    said = list[str]()
    for name, told in methods.items():
        sanity: Mapping[str, Any] = told.get("sanity") or {"passed": True}
        if sanity.get("refused"):
            said.append(f"{capital(name)} has no verdict of the sanity check: {sanity['refused']}.")
        elif not sanity["passed"]:
            last = sanity["levels"][-1]["rank_correlation"]
            said.append(
                f"{capital(name)} does not pass the sanity check: without any learned weight its maps still have a rank correlation of "
                f"{interval_text(last, 2)} with those of the trained network (it must lie below {sanity['threshold']})."
            )
        if told["constant"]:
            said.append(
                f"{capital(name)} is constant on {told['constant']} pictures: it shows nothing there, and points at a place that is drawn."
            )
        complete = told.get("completeness")
        if complete and complete["complete"] < complete["n"]:
            said.append(
                f"{capital(name)} is not complete on {complete['n'] - complete['complete']} of {complete['n']} pictures: the attributions "
                f"do not sum to the difference of the logits within {100 * complete['tolerance']:g} %."
            )
    return said


def interval_text(told: Mapping[str, Any], digits: int, factor: float = 1.0) -> str:
    """Mean and interval: 0.12 [0.05, 0.20]."""
    mean = f"{factor * told['mean']:.{digits}f}"
    if told["low"] is None:
        return mean
    return f"{mean} [{factor * told['low']:.{digits}f}, {factor * told['high']:.{digits}f}]"


def _sanity(methods: Mapping[str, Any]) -> NumberTable | None:
    checked = {name: told["sanity"] for name, told in methods.items() if "sanity" in told}
    if not checked:
        return None
    lost = [level["lost"] for level in next(iter(checked.values()))["levels"]]
    rows = [
        [
            name,
            *(interval_text(told, 2) if (told := level["rank_correlation"]) else "constant" for level in one["levels"]),
            "no verdict" if one["refused"] else "passed" if one["passed"] else "not passed",
        ]
        for name, one in checked.items()
    ]
    n = max(told["n"] for one in checked.values() for level in one["levels"] if (told := level["rank_correlation"]))
    limit = next(iter(checked.values()))["threshold"]
    foot = [
        f"Spearman's rank correlation of each map with that of the trained network, mean over {n} pictures with its 95 % interval, after "
        "the weights of these layers were drawn anew; maps that became constant have no part. A map passes if every map changed and the "
        f"interval of the last column lies below {limit}: above it, maps share more than a quarter of the variance of their ranks with "
        "those of a network that knows nothing. Where half of the maps or more are constant in the last column, there is no verdict.",
    ]
    return NumberTable("Sanity check by random weights", ["map", *lost, ""], rows, foot)


def _curves(methods: Mapping[str, Any]) -> NumberTable | None:
    measured = {name: told["curves"] for name, told in methods.items() if "curves" in told}
    if not measured:
        return None
    rows = [
        [name, *(interval_text(one[curve][key], 3) for curve in ("insertion", "deletion") for key in ("area", "gain"))]
        for name, one in measured.items()
    ]
    first = next(iter(measured.values()))
    random = ", ".join(f"{curve} {interval_text(first[curve]['random'], 3)}" for curve in ("insertion", "deletion"))
    n = first["insertion"]["area"]["n"]
    foot = [
        f"Area under the probability of the class, mean over {n} pictures with its 95 % interval, while the places that a map ranks "
        "highest come into the blurred picture (insertion: high is good) or are replaced by the mean colour (deletion: low is good).",
        f"Random order: {random}. The gain is the difference from it, picture by picture; above 0 the map is better.",
    ]
    columns = ["map", "insertion", "gain over random", "deletion", "gain over random"]
    return NumberTable("Insertion and deletion", columns, rows, foot)


def _pointing(methods: Mapping[str, Any]) -> NumberTable | None:
    played = {name: told["pointing"] for name, told in methods.items() if "pointing" in told}
    if not played:
        return None
    keys: Sequence[str] = ("hits", "chance", "centre", "above_chance", "above_centre")
    rows = [
        [name, str(one["hits"]["n"]), *(interval_text(one[key], 1, 100) for key in keys)]
        for name, one in played.items()
    ]
    tolerance = next(iter(played.values()))["tolerance"]
    foot = [
        f"In how many pictures of a hundred the highest place of the map lies on the object, or at most {tolerance:.1f} px from it, with "
        "95 % intervals over pictures. Chance is the share of the picture where a point would be a hit; centre is its middle.",
    ]
    columns = ["map", "n", "hits, %", "chance, %", "centre, %", "hits - chance, points", "hits - centre, points"]
    return NumberTable("Pointing game", columns, rows, foot)
