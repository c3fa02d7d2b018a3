"""Tables in Markdown, to be committed: numbers with intervals, n, protocol, selection, looks, and the command that makes them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.printable import capital
from .claims import claim_words, needed_words, removed_words, tasks_words
from .differences import difference_bounds, difference_words
from .gains import gain_words, over_words
from .negative import negative_lines
from .oracles import ORACLE
from .priors import HEAD, legends, priors_cell
from .results import looks_note
from .tables import KIND_HEADINGS, interval, is_fraction, number


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table. right: columns that are aligned to the right."""
    rule = ["---:" if column in right else "---" for column in range(len(heads))]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in (heads, rule, *rows))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def points(value: float) -> str:
    """A difference of fractions in points, with its sign."""
    return number(value, 100, sign=True)


def contrast_lines(contrasts: Mapping[str, Any] | None) -> list[str]:
    """The primary contrasts in words, then how they were declared; [] for a table without any."""
    if not contrasts:
        return []
    lines = []
    for one in contrasts["primary"]:
        fraction = is_fraction(one["metric"], [])
        words = claim_words(one, " points" if fraction else "", points if fraction else lambda value: f"{value:+.4g}")
        over = f" Over {one['resampled']}." if one["resampled"] else ""
        note = f" Not by image: {one['note']}." if one["note"] else ""
        removed = f" {sentence}." if (sentence := removed_words(one)) else ""
        lines.append(f"{one['label']}: {words}.{over}{removed} {capital(needed_words(one))}.{note}")
    changed = f" {capital(contrasts['note'])}." if contrasts["note"] else ""
    head = (
        f"Primary contrasts were declared on {contrasts['declared'][:10]}, sha256 {contrasts['digest'][:12]}.{changed}"
    )
    return [*lines, f"{head} All other comparisons are exploratory."]


def gain_lines(gains: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each gain over several rows in words. None is a primary contrast, which has one row b, so all are exploratory."""
    lines = []
    for one in gains:
        fraction = is_fraction(one["metric"], [])
        words = gain_words(one, " points" if fraction else "", points if fraction else lambda value: f"{value:+.4g}")
        lines.append(f"{one['label']} (exploratory): {words}.")
    return lines


def _rows_table(found: Sequence[Mapping[str, Any]]) -> str:
    bounds = ["95 % over seeds", f"95 % over {over_words(max(row['n'] for row in found))}"]
    heads = ["", "metric", "mean", *bounds, "n", "kind", "selection"]
    looked, apart = (any(row.get(key) for row in found) for key in ("looks", "priors"))
    heads += [head for head, shown in (("looks", looked), (HEAD, apart)) if shown]
    rows = []
    for row in found:
        scale = 100.0 if is_fraction(row["metric"], row["values"]) else 1.0
        notes = "; ".join(filter(None, [row.get("note"), row.get("oracle"), tasks_words(row.get("tasks"))]))
        over_seeds = interval(row, scale) if row["n"] > 1 else ""
        numbers = [number(row["mean"], scale), over_seeds, _over_images(row, scale), str(row["n"])]
        rows.append([row["label"], row["metric"], *numbers, row["kind"], ", ".join(row["selection"])])
        further = ((looks_note(row).removeprefix("looks: "), looked), (priors_cell(row), apart))
        rows[-1] += [*(cell for cell, shown in further if shown), notes]
    return markdown_table([*heads, "notes"], rows, right=(2, 5))


def _over_images(row: Mapping[str, Any], scale: float) -> str:
    """The interval over test images, and over seeds if there are several; "" where predictions were not kept."""
    bounds = row.get("over_images") or (row.get("bootstrap") if row["n"] == 1 else None)
    if not bounds:
        return ""
    return "[" + ", ".join(number(bound, scale) for bound in bounds) + "]"


def _differences_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    over = over_words(max(one["n"] for one in comparisons))
    return markdown_table(
        ["difference", "points", "95 % over seeds", f"95 % over {over}", "n", ""],
        [
            [
                f"{one['label']} ({one['a']} − {one['b']})",
                difference_words(one),
                difference_bounds(one, None if one["low"] is None else (one["low"], one["high"]))
                if one["n"] > 1
                else "",
                difference_bounds(one, one.get("over_images")),
                str(one["n"]),
                "" if "primary" not in one else "primary" if one["primary"] else "exploratory",
            ]
            for one in comparisons
        ],
        right=(1, 4),
    )


def pipeline_markdown(table: Mapping[str, Any], command: str, layers: Sequence[str] = ()) -> str:
    """table.md of a pipeline. table: its result.json. command: that makes it. Oracles have a table of their own.

    layers: `tables_of_pipeline`.
    """
    oracles = [row for row in table["rows"] if row["kind"] == ORACLE]
    parts = [f"Made by `{command}`."]
    if results := [row for row in table["rows"] if row["kind"] != ORACLE]:
        parts.append(_rows_table(results))
    if oracles:
        parts += [f"{KIND_HEADINGS[ORACLE]}.", _rows_table(oracles)]
    if table["comparisons"]:
        parts.append(_differences_table(table["comparisons"]))
    parts += [f"- {line}" for line in legends(table["rows"])]
    lines = [*negative_lines(table["rows"]), *gain_lines(table.get("gains") or [])]
    parts += [f"- {line}" for line in (*lines, *contrast_lines(table.get("contrasts")))]
    return "\n\n".join([*parts, *layers]) + "\n"
