"""The doctor's findings, printed one by one or as JSON at the end."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MARKS = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "wrong": "[red]WRONG[/]"}


class Finding(NamedTuple):
    """The result of one check.

    verdict: `wrong`: an essential part is broken; `note`: something could be better. message: one sentence.
    facts: its numbers, for scripts.
    """

    verdict: Literal["ok", "note", "wrong"]
    subject: str
    message: str
    facts: Mapping[str, Any] = {}


class Report:
    """Collects and prints findings. as_json: print everything as JSON in `conclude`, nothing before. quiet: print nothing."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.console = Console(highlight=False, soft_wrap=True, quiet=quiet or as_json)
        self.findings: list[Finding] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.console.print(f"{MARKS[finding.verdict]} {finding.subject:<12} {escape(finding.message)}")

    def tabulate(
        self, name: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str]]
    ) -> None:
        """Store rows under a name and print them. columns: heading -> how to format a row's cell."""
        self.tables[name] = [dict(row) for row in rows]
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for heading in columns:
            table.add_column(heading, justify="left" if heading == name else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(cell(row) for cell in columns.values()))
        self.console.print(table, width=None if os.isatty(1) else 120)

    @property
    def wrong(self) -> int:
        return sum(finding.verdict == "wrong" for finding in self.findings)

    def conclude(self) -> None:
        """Print how many findings are wrong, or everything as JSON."""
        if self.as_json and not self.quiet:
            findings = [
                {"verdict": finding.verdict, "subject": finding.subject, "said": finding.message, **finding.facts}
                for finding in self.findings
            ]
            print(json.dumps({"wrong": self.wrong, "findings": findings, **self.tables}, indent=1), flush=True)
        last = f"{self.wrong} wrong: repair these first" if self.wrong else "nothing essential is wrong"
        self.console.print(f"\n{last}", style="bold")


def guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; an exception in it becomes a finding too, so that the other checks still run."""
    try:
        yield from check()
    except Exception as error:
        yield Finding("wrong", check.__name__, f"the check stopped with {type(error).__name__}: {short_message(error)}")


def short_message(error: Exception) -> str:
    """The last non-empty line of an error; for a child process's traceback that is its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
