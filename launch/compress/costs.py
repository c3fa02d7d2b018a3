"""What networks cost, as a table, as JSON and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from ...core.evaluate.statistics import Interval
from ...core.printable import printable
from ..report.markdown import markdown_table
from .latency import Latency
from .memory import PeakMemory

UNMEASURED = "not measured"
MIB = 2**20


class FormCosts(NamedTuple):
    """One form of a network.

    latency: by batch size. faster: the median ratio of the first form's latency to this one's, of one picture; None for the first.
    frames: a second, from JPEG bytes to the label. joules: of a picture; None where no counter is, and why.
    """

    bytes: int
    latency: dict[int, Latency]
    faster: Interval | None
    frames: Interval | None
    memory: PeakMemory
    joules: float | None
    why: str

    def throughput(self, batch: int) -> float:
        """Pictures a second, by the median of the calls."""
        return 1000 * batch / self.latency[batch].median

    def as_json(self) -> dict[str, Any]:
        calls = {
            str(batch): {**found._asdict(), "pictures_per_s": self.throughput(batch)}
            for batch, found in self.latency.items()
        }
        return {
            "bytes": self.bytes,
            "ms": calls,
            "faster": None if self.faster is None else self.faster._asdict(),
            "frames_per_s": None if self.frames is None else self.frames._asdict(),
            "peak_bytes": self.memory.peak,
            "library_bytes": self.memory.before,
            "joules_a_picture": self.joules,
            **({"why_no_joules": self.why} if self.joules is None else {}),
        }


class NetworkCosts(NamedTuple):
    """macs, parameters: None where torch cannot build the network here. missing: why a form is not measured, by form."""

    title: str
    size: int
    channels: int
    macs: int | None
    parameters: int | None
    forms: dict[str, FormCosts]
    missing: dict[str, str]

    def in_words(self) -> str:
        counted = ""
        if self.macs is not None and self.parameters is not None:
            counted = f", {self.macs / 1e6:,.1f} million multiply-adds, {self.parameters:,} parameters"
        return f"{self.title}: {self.channels} x {self.size} x {self.size}{counted}"

    def as_json(self) -> dict[str, Any]:
        forms = {form: found.as_json() for form, found in self.forms.items()}
        return {**self._asdict(), "forms": forms}


def headings(batches: Sequence[int]) -> list[str]:
    """Of the columns."""
    sizes = [f"pictures/s at {batch}" for batch in batches]
    return [
        "network",
        "form",
        "MiB",
        "ms",
        "p95",
        "times as fast",
        *sizes,
        "JPEG frames/s",
        "peak MiB",
        "of libraries",
        "J a picture",
    ]


def cost_rows(found: Sequence[NetworkCosts], batches: Sequence[int]) -> list[list[str]]:
    """The table, one row a form."""
    rows = []
    for network in found:
        for form, costs in network.forms.items():
            one = costs.latency[1]
            faster = "1" if costs.faster is None else _between(costs.faster)
            rates = [f"{costs.throughput(batch):,.4g}" for batch in batches]
            cells = [
                network.title,
                form,
                f"{costs.bytes / MIB:.2f}",
                f"{one.median:.3g}",
                f"{one.p95:.3g}",
                faster,
                *rates,
            ]
            cells.append(UNMEASURED if costs.frames is None else _between(costs.frames))
            cells += [f"{costs.memory.peak / MIB:.0f}", f"{costs.memory.before / MIB:.0f}"]
            rows.append([*cells, UNMEASURED if costs.joules is None else f"{costs.joules:.3g}"])
        rows += [[network.title, form, UNMEASURED] for form in network.missing]
    return rows


def _between(found: Interval) -> str:
    values = [value for value in (found.estimate, found.low, found.high) if value is not None]
    estimate, *ends = (f"{value:,.4g}" if value >= 1000 else f"{value:.3g}" for value in values)
    return f"{estimate} [{', '.join(ends)}]" if ends else estimate


def remarks(found: Sequence[NetworkCosts], machine: str) -> list[str]:
    """What the table does not say: networks, machine, how it was measured, and what was not, with the reason."""
    lines = [network.in_words() for network in found]
    lines += [
        f"{network.title}: {form}: {UNMEASURED}: {why}" for network in found for form, why in network.missing.items()
    ]
    # One line a reason.
    why = dict.fromkeys(costs.why for network in found for costs in network.forms.values() if costs.joules is None)
    lines += [f"energy: {UNMEASURED}: {reason}" for reason in why]
    return [*lines, machine]


def printed_table(found: Sequence[NetworkCosts], batches: Sequence[int]) -> Table:
    """For the terminal."""
    printed = Table(box=None, header_style="dim", pad_edge=False)
    for column, heading in enumerate(headings(batches)):
        printed.add_column(heading, justify="left" if column < 2 else "right")
    for row in cost_rows(found, batches):
        printed.add_row(*(escape(printable(cell)) for cell in row))
    return printed


def markdown_page(found: Sequence[NetworkCosts], batches: Sequence[int], machine: str, command: str) -> str:
    """The table as a page."""
    heads = headings(batches)
    rows = [[*row, *[""] * (len(heads) - len(row))] for row in cost_rows(found, batches)]
    parts = [f"Made by `{command}`.", markdown_table(heads, rows, right=range(2, len(heads)))]
    return "\n\n".join([*parts, *(f"- {line}" for line in remarks(found, machine))]) + "\n"
