"""A page in some lines for a terminal: its numbers, its verdict, and what was compared image by image."""

from __future__ import annotations

from collections.abc import Sequence

from .contents import Page
from .pairs import Pairs, p_text
from .tables import ResultTable


def page_lines(page: Page) -> list[str]:
    """The tables without their plots, then the verdict, then the comparisons by image and what could not be paired."""
    shown = [*page.tables, *([page.differences] if page.differences else [])]
    tables = [line for table in shown for line in _table_lines(table)]
    return [*tables, *([page.verdict] if page.verdict else []), *_pair_lines(page.pairs)]


def _table_lines(table: ResultTable) -> list[str]:
    rows = [(table.heading, table.unit, "95 % interval" if table.intervals else "", "n" if table.several else "")]
    for group, lines in table.groups:
        start = f"{group}: " if group else ""
        rows += [(f"{start}{one.label}", one.mean, one.interval, str(one.n) if table.several else "") for one in lines]
    return _aligned(rows)


def _pair_lines(pairs: Pairs) -> list[str]:
    table = [("second - first", "metric", "difference", "95 % interval", "n", "test", "p", "Holm")]
    for line in pairs.lines:
        n = f"{line.images} x {line.seeds} seeds" if line.seeds > 1 else str(line.images)
        facts = (f"{line.where} {line.metric}", line.difference, line.interval, n, line.test)
        table.append((f"{line.second} - {line.first}", *facts, p_text(line.p), p_text(line.adjusted)))
    return (_aligned(table) if pairs.lines else []) + [f"not compared: {note}" for note in pairs.notes]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
