"""What the doctor says: findings, printed as they come or as JSON at the end."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MARKS = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "wrong": "[red]WRONG[/]"}


class Finding(NamedTuple):
    """verdict: `wrong` is an essential part that is broken, `note` what one may want to mend. said: one sentence. facts: its figures,
    for scripts."""

    verdict: Literal["ok", "note", "wrong"]
    subject: str
    said: str
    facts: Mapping[str, Any] = {}


class Report:
    """Where findings go. as_json: print nothing before `conclude`, and that as JSON. quiet: print nothing at all."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.console = Console(highlight=False, soft_wrap=True, quiet=quiet or as_json)
        self.findings: list[Finding] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.console.print(f"{MARKS[finding.verdict]} {finding.subject:<12} {escape(finding.said)}")

    def tabulate(
        self, name: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str]]
    ) -> None:
        """Keep rows under a name, and print their `columns`: of each heading, what stands there of a row."""
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
            said = [
                {"verdict": finding.verdict, "subject": finding.subject, "said": finding.said, **finding.facts}
                for finding in self.findings
            ]
            print(json.dumps({"wrong": self.wrong, "findings": said, **self.tables}, indent=1), flush=True)
        last = f"{self.wrong} wrong: mend these first" if self.wrong else "nothing essential is wrong"
        self.console.print(f"\n{last}", style="bold")


def guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; one that cannot even finish is itself a finding, so the others are still made."""
    try:
        yield from check()
    except Exception as error:
        yield Finding("wrong", check.__name__, f"the check stopped at {type(error).__name__}: {short_message(error)}")


def short_message(error: Exception) -> str:
    """The last line of an error that says something: of a child's traceback, that is its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
