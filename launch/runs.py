"""`rootstock runs`: state, progress and headline metric of all runs under a folder."""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.errors import UserError
from ..core.printable import printable
from ..core.run import state
from ..core.run.folder import ABOUT, CONFIG, RESULT, read_result
from ..core.run.rows import CELLS, METRICS
from .report.folder import Parts, config_words

STATE_COLOURS = {
    "running": "cyan",
    "finished": "green",
    "preempted": "yellow",
    "failed": "red",
    "killed": "red",
    "damaged": "red",
}


class Row(NamedTuple):
    """One run.

    step, steps: done and planned; None if nothing is trained. metric, value: its headline metric; before the end the newest
    accuracy, otherwise the loss. age: seconds since it last wrote a file. why: why it failed.
    """

    run: str
    verb: str
    seed: int | None
    state: str
    step: int | None
    steps: int | None
    metric: str | None
    value: float | None
    host: str | None
    age: float
    why: str


def list_runs(folder: Path, as_json: bool) -> None:
    """Print a row for each run under `folder`, with stages of pipelines and trials of sweeps. Raises UserError if there is none.

    A damaged run has a row that says what is damaged.
    """
    rows = [row_of(path, folder) for path in find_runs(folder)]
    if not rows:
        what = "holds no run" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; expected a folder with runs below it, for example runs")
    if as_json:
        plain = [row if math.isfinite(row.value or 0) else row._replace(value=None) for row in rows]  # JSON has no NaN
        print(json.dumps([row._asdict() for row in plain], indent=1, allow_nan=False))
        return
    Console(highlight=False, width=None if os.isatty(1) else 200).print(runs_table(rows))


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders of runs at and below `folder`, by name; it does not look inside a run."""
    for path, below, files in os.walk(folder):
        below.sort()
        # Either is enough: the other may be lost. Checkpoints and the like lie inside of runs.
        if CONFIG not in files and not {RESULT, ABOUT} & {*files}:
            continue
        run = Path(path)
        if is_collection(run):
            below[:] = [name for name in below if name.startswith(("seed-", "trial-", CELLS))]
            continue
        below.clear()
        yield run


def is_collection(path: Path) -> bool:
    """Whether it is the folder of a pipeline, a sweep or an attribution."""
    with contextlib.suppress(UserError):
        if (words := config_words(path)).keys() & {"stages", "search"}:
            return True
        if words:
            return False
    return (read_result(path, lambda _: None) or {}).get("task") in ("pipeline", "sweep", "attribution")


def row_of(path: Path, root: Path) -> Row:
    parts, status = Parts(path, METRICS), state.read_state(path)
    damage = list(parts.damage)
    if parts.about.get("manifest") and not os.path.lexists(path / state.FILE):
        damage.append(f"{path / state.FILE} is missing")
    try:
        words = config_words(path)
    except UserError as error:
        words, damage = {}, [str(error), *damage]
    metric, value = headline(parts)
    trained = [row["step"] for row in parts.rows]
    steps = status.get("steps") or parts.result.get("steps")
    why = "; ".join(filter(None, [str(status.get("why") or ""), *damage]))
    return Row(
        run=str(path.relative_to(root)) if path != root else str(path),
        verb=str(parts.about.get("verb") or parts.result.get("task") or words.get("verb") or "run"),
        seed=parts.result.get("seed", whole_number(words.get("seed", ""))),
        state="damaged" if damage and status["state"] != "running" else "finished" if parts.result else status["state"],
        step=(parts.result.get("steps") or max([*trained, saved_step(path), 0])) if steps else None,
        steps=steps,
        metric=metric,
        value=value,
        host=status.get("host") or parts.about.get("host"),
        age=max(0.0, time.time() - newest(path)),
        why=why,
    )


def saved_step(path: Path) -> int:
    """The step of a run's newest checkpoint, from which it resumes; -1 without one."""
    names = (found.name.removeprefix("step-") for found in (path / "checkpoints").glob("step-*"))
    return max((int(name) for name in names if name.isdecimal()), default=-1)


def whole_number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,19}", text) else None


def headline(parts: Parts) -> tuple[str | None, float | None]:
    """The headline metric of a run, and its value."""
    for name, value in (parts.result.get("metrics") or {}).items():
        return name, value
    for row in reversed(parts.rows):
        for name, value in row.items():
            if name.endswith("/accuracy") and isinstance(value, int | float):
                return name, value
    losses = [row["loss"] for row in parts.rows if isinstance(row.get("loss"), int | float)]
    return ("loss", losses[-1]) if losses else (None, None)


def newest(path: Path) -> float:
    """Time of the run's last write to one of its own files, in seconds since 1970."""
    files = (path / name for name in ("metrics.jsonl", "result.json", state.FILE, "config.yaml"))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def runs_table(rows: list[Row]) -> Table:
    printed = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("run", "verb", "seed", "state", "step", "metric", "value", "host", "age"):
        printed.add_column(heading, justify="right" if heading in ("seed", "step", "value", "age") else "left")
    for row in rows:
        state_text = f"[{STATE_COLOURS[row.state]}]{row.state}[/]" + (f": {_text(row.why)}" if row.why else "")
        step = "" if row.steps is None else f"{row.step:,} of {row.steps:,}"
        value = "" if row.value is None else f"{row.value:.4f}"
        cells = [
            _text(row.run),
            _text(row.verb),
            _text(row.seed),
            state_text,
            step,
            _text(row.metric),
            value,
            _text(row.host),
        ]
        printed.add_row(*cells, age_in_words(row.age))
    return printed


def _text(value: Any) -> str:
    return "" if value is None else escape(printable(str(value)))


def age_in_words(seconds: float) -> str:
    """`42 s`, `7 min`, `5 h` or `3 d`: in the largest unit that gives at least 1."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
