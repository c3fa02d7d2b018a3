"""The page of an attribution, and its tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.launchlog import warn
from ...core.printable import capital
from ...core.run.folder import read_result
from ...core.run.rows import CELLS
from ..report.contents import Page
from ..report.differences import differences_table
from ..report.html import provenance, write_html, yaml_text
from ..report.markdown import markdown_table, points
from ..report.priors import HEAD, legends, priors_cell
from ..report.records import read_run, stages_of
from ..report.results import looks_note
from ..report.tables import ResultTable, caveats, interval, number, results_tables

EFFECTS = "An effect is the mean over the cells where a factor is on minus the mean over those where it is off, paired by seed."


def write_attribution_page(folder: Path, out: Path) -> Path:
    """Write the page of a finished attribution. Raises UserError if it has no result yet."""
    result = read_result(folder, lambda why: warn(f"WARNING: {why}"))
    if result is None:
        raise UserError(f"{folder} has no result.json yet; the same attribute command finishes it")
    own, cells = read_run(folder), read_run(folder / CELLS)
    labels, rows = result["factors"], cells.result.get("rows") or []
    effects = [
        {**one, "label": _named(one["factors"], labels), "a": "on", "b": "off", "primary": one["primary"]}
        for one in result["effects"]
    ]
    text = own.config.get("text") or []
    page = Page(
        title=own.config.get("title") or folder.resolve().name,
        summary=f"{len(result['cells'])} cells, {len(result['seeds'])} seeds, {result['runs']} runs of {result['response']}",
        text=[*([text] if isinstance(text, str) else text), *attribution_sentences(result)],
        caveats=caveats(rows),
        tables=[*results_tables(rows, {}), _shapley_table(result)] if rows else [_shapley_table(result)],
        differences=differences_table(effects, f"{EFFECTS} 95 % intervals are over {_resampled(result)}."),
        contrasts=primary_lines(result),
        facts=provenance([record for stage in stages_of(cells) for record in stage.records]),
        config=yaml_text(own.config),
    )
    return write_html("report.html.j2", page, out)


def _shapley_table(result: Mapping[str, Any]) -> ResultTable:
    parts = [
        {**one, "label": result["factors"][one["factor"]], "a": f"share {share_words(one)}", "b": "off"}
        for one in result["shapley"]
    ]
    table = differences_table([*parts, {**result["total"], "label": "all together", "a": "all on", "b": "all off"}])
    foot = (
        "Shapley values: what a factor adds, averaged over all orders of turning factors on; they sum to the last row."
    )
    for line in table.groups[0][1][: len(parts)]:
        object.__setattr__(line, "note", line.note.removesuffix(" − off"))
    return ResultTable(
        "What each factor adds",
        table.unit,
        table.columns,
        table.groups,
        table.ticks,
        [foot],
        table.intervals,
        table.several,
    )


def share_words(part: Mapping[str, Any]) -> str:
    """ "62 % [40, 85]" of a Shapley value; without an interval where the total is not shown to differ from 0."""
    if part["share"] is None:
        return "of nothing: the total is 0"
    words = f"{number(part['share'])} %"
    if part["share_low"] is None:
        return f"{words} (no interval: the total may be 0)"
    return f"{words} [{number(part['share_low'])}, {number(part['share_high'])}]"


def _named(factors: Sequence[str], labels: Mapping[str, str]) -> str:
    return " × ".join(labels[name] for name in factors)


def attribution_sentences(result: Mapping[str, Any]) -> list[str]:
    """What the numbers are, and what common random numbers saved."""
    n, looks = len(result["seeds"]), looks_note(result) or "looks were not counted"
    mains = [one for one in result["effects"] if len(one["factors"]) == 1 and one["variance_ratio"] is not None]
    sentences = [
        f"Every number is of {result['metric']}, in points; {looks}. {EFFECTS} An interaction is half the change of one factor's effect by "
        f"another. All cells of a seed share its splits, orders and draws. Intervals of effects and Shapley values are over "
        f"{_resampled(result)}; those of shares over seeds.",
    ]
    if mains:
        saved = ", ".join(
            f"{one['variance_ratio']:.1f} times for {_named(one['factors'], result['factors'])}" for one in mains
        )
        sentences.append(
            f"Without common random numbers the same intervals would need other numbers of seeds than these {n}: {saved}. "
            "(Ratios of variances, rough for few seeds; below 1 pairing did harm.)"
        )
    different = len({cell["stage"] for cell in result["cells"]})
    if different < len(result["cells"]):
        sentences.append(
            f"{len(result['cells'])} cells are {different} different recipes: where a factor changes nothing, cells share one run."
        )
    return sentences


def _resampled(result: Mapping[str, Any]) -> str:
    over_both = "seeds and, within them, test images"
    return over_both if result.get("resampled") == "seeds and images" else "seeds alone, since no predictions were kept"


def primary_lines(result: Mapping[str, Any]) -> list[str]:
    """The primary effects in words, and how they were declared; [] if there are none."""
    if not result.get("contrasts"):
        return []
    lines = []
    for one in (one for one in result["effects"] if one["primary"]):
        name = _named(one["factors"], result["factors"])
        bounds = interval(one, 100, sign=True)
        inside = f", 95 % interval {bounds}" if bounds else ""
        facts = f"{points(one['mean'])} points{inside}, p = {one['adjusted']:.2g} after Holm over {one['of']}"
        verdict = "has an effect" if one["holds"] else "has no effect that is shown"
        needed = (
            f"; {one['seeds_needed']} seeds show such an effect with 80 % probability, by the spread between seeds alone"
            if one["seeds_needed"]
            else ""
        )
        lines.append(f"{name} {verdict} ({facts}{needed}).")
    told = result["contrasts"]
    changed = f" {capital(told['note'])}." if told["note"] else ""
    head = f"Primary effects were declared on {told['declared'][:10]}, sha256 {told['digest'][:12]}.{changed}"
    return [*lines, f"{head} All other effects are exploratory."]


def attribution_markdown(result: Mapping[str, Any], command: str) -> str:
    """table.md. command: that makes it."""
    labels = result["factors"]
    apart = [HEAD] if any(one.get("priors") for one in result["cells"]) else []
    cells = [
        [
            " + ".join(labels[name] for name in one["on"]) or "all off",
            number(one["mean"]),
            interval({**one, "metric": result["metric"]}, 100),
            str(one["n"]),
            *([priors_cell(one)] if apart else []),
        ]
        for one in result["cells"]
    ]
    shares = [
        [labels[one["factor"]], points(one["mean"]), interval(one, 100, sign=True), share_words(one)]
        for one in result["shapley"]
    ]
    total = result["total"]
    shares.append(["all together", points(total["mean"]), interval(total, 100, sign=True), ""])
    effects = [
        [
            _named(one["factors"], labels),
            points(one["mean"]),
            interval(one, 100, sign=True),
            "" if one["variance_ratio"] is None else f"{one['variance_ratio']:.1f}",
            "" if one["seeds_saved"] is None else str(one["seeds_saved"]),
            "primary" if one["primary"] else "exploratory",
        ]
        for one in result["effects"]
    ]
    kinds = f"{', '.join(result['kind'])}; selection: {', '.join(result['selection'])}; seeds: {', '.join(map(str, result['seeds']))}."
    parts = [
        f"Made by `{command}`. {capital(kinds)}",
        *attribution_sentences(result),
        markdown_table(["cell", f"{result['metric']}, %", "95 % interval", "n", *apart], cells, right=(1, 3)),
        *legends(result["cells"]),
        markdown_table(["Shapley value", "points", "95 % interval", "share of the total"], shares, right=(1,)),
        markdown_table(
            ["effect", "points", "95 % interval", "variance ratio", "seeds saved", ""], effects, right=(1, 3, 4)
        ),
        *(f"- {line}" for line in primary_lines(result)),
    ]
    return "\n\n".join(parts) + "\n"
