"""The table that `rootstock prune` ends with: what each round costs and how accurate it is, beside the run that was pruned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.distributed import rank
from ...core.errors import UserError
from ...core.files import expanded
from ..aloud import conclude, say
from ..following import exporting
from ..report.answers import answers_of
from ..report.pairs import Paired, compare_images
from ..report.records import RunRecord, StageRuns, read_run
from ..report.results import main_metric
from .rounds import PruningRounds, stage_of_round

HEADINGS = ("", "multiply-adds", "parameters", "accuracy", "difference [95 % over test images]")


def say_rounds(rounds: PruningRounds) -> None:
    """Print the table, and the next command, on the first process: others may come here before it has written the last result."""
    if rank():
        return
    first = read_run(expanded(rounds.run))
    made = [read_run(folder_of(rounds, number)) for number in range(1, rounds.total + 1)]
    for line in rounds_table(rounds.run.name, first, made):
        say(line)
    costs = made[0].result["pruned"]["before"], made[-1].result["pruned"]["after"]
    print(folder_of(rounds, rounds.total))
    kept = costs[1]["macs"] / costs[0]["macs"]
    conclude(
        f"prune: {kept:.1%} of the multiply-adds of {rounds.run} stay after {rounds.total} round{'s' * (rounds.total != 1)}, "
        f"in {rounds.folder}",
        exporting(folder_of(rounds, rounds.total)),
    )


def folder_of(rounds: PruningRounds, number: int) -> Path:
    """The run of a round."""
    (folder,) = rounds.folder.glob(f"seed-*/{stage_of_round(number)}")
    return folder


def rounds_table(name: str, first: RunRecord, made: list[RunRecord]) -> list[str]:
    """A line for the run that was pruned, and one for each round."""
    rows = [HEADINGS, _row(name, first.result, made[0].result["pruned"]["before"], "")]
    for number, record in enumerate(made, 1):
        rows.append(
            _row(f"round {number}", record.result, record.result["pruned"]["after"], difference_to(first, record))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, 4) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(name: str, result: Mapping[str, Any], cost: Mapping[str, int], away: str) -> tuple[str, ...]:
    try:
        accuracy = f"{100 * result['metrics'][main_metric(result)]:.1f} %"
    except UserError:
        accuracy = "-"
    return name, f"{cost['macs'] / 1e6:,.1f} M", f"{cost['parameters']:,}", accuracy, away


def difference_to(first: RunRecord, other: RunRecord) -> str:
    """The difference of accuracy to the run that was pruned, in points, with its paired 95 % interval; or why there is none."""
    a, b = (answers_of(StageRuns(record.path.name, [record])) for record in (first, other))
    keys = [key for run in a.values() for key in run if any(key in found for found in b.values())]
    if not keys:
        return "no predictions to pair"
    found = compare_images((first.path.name, a), (other.path.name, b), (keys[0], keys[0]))
    if isinstance(found, str):
        return found
    line: Paired = next(line for line in found if line.metric == "accuracy")
    return f"{line.difference} {line.interval}"
