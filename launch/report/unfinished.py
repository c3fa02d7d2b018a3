"""What stands in the folder of a pipeline that has not ended: which stages are done, what they say so far, and how it goes on."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.config.yaml_file import find
from ...core.errors import UserError
from ...core.run.folder import CONFIG
from ...core.run.state import read_state
from ..pipeline.checks import references
from ..pipeline.table import tabulate
from .claims import stages_shown
from .records import RunRecord, StageRuns

NOT_BEGUN = "not begun"
_WORDS = {"preempted": "stopped", "killed": "stopped", "running": "running", "failed": "failed"}


@dataclass(frozen=True)
class Standing:
    """How far a pipeline is. rows: (stage, verb, the state of each seed's run). command: what goes on with it; "" if only its file is known
    to who began it.
    """

    seeds: list[int]
    rows: list[tuple[str, str, list[str]]]
    command: str

    @property
    def counts(self) -> Counter[str]:
        return Counter(state.partition(",")[0] for _, _, states in self.rows for state in states)

    def sentence(self) -> str:
        """Which runs there are, in words."""
        counts = self.counts
        rest = [f"{counts[state]} {state}" for state in ("running", "stopped", "failed", NOT_BEGUN) if counts[state]]
        return f"Not finished: {counts['finished']} of {counts.total()} runs are done, {', '.join(rest)}."


def standing(pipeline: RunRecord, stages: Sequence[StageRuns]) -> Standing | None:
    """None for a pipeline whose runs are all finished and that has its result."""
    seeds = [seed for seed in pipeline.config.get("seeds") or [] if isinstance(seed, int)]
    given = pipeline.config.get("stages") or {}
    records = {(stage.name, record.seed): record for stage in stages for record in stage.records}
    rows = [
        (str(name), str(section.get("verb", "")), [_state(pipeline, str(name), seed, records) for seed in seeds])
        for name, section in given.items()
        if isinstance(section, Mapping)
    ]
    if pipeline.finished and all(state == "finished" for _, _, states in rows for state in states):
        return None
    return Standing(seeds, rows, _command(pipeline)) if rows and seeds else None


def _state(pipeline: RunRecord, name: str, seed: int, records: Mapping[tuple[str, int | None], RunRecord]) -> str:
    folder, record = pipeline.path / f"seed-{seed}" / name, records.get((name, seed))
    if record is not None and record.finished:
        return "finished"
    if not (folder / CONFIG).is_file():
        return NOT_BEGUN
    said = read_state(folder)
    words = _WORDS.get(str(said["state"]), "stopped")
    steps = [row["step"] for row in (record.rows if record else []) if isinstance(row.get("step"), int)]
    planned = f" of {said['steps']}" if said.get("steps") else ""
    return f"{words}, step {max(steps)}{planned}" if steps else words


def _command(pipeline: RunRecord) -> str:
    """The pipeline's own config is one again, if it needs no file that stood beside the one it was made from."""
    sections = (pipeline.config.get("stages") or {}).values()
    try:
        for section in sections:
            find(str(section["config"]))
    except (UserError, LookupError, TypeError):
        return ""
    return f"rootstock run {shlex.quote(str(pipeline.path / CONFIG))}"


def results_so_far(pipeline: RunRecord, stages: Sequence[StageRuns]) -> dict[str, Any]:
    """`rows`, `comparisons` and `gains` of the stages that are finished, over the seeds in which all of a row's stages are."""
    report = {"rows": [], "comparisons": [], "columns": {}, **(pipeline.config.get("report") or {})}
    ended = {stage.name: [record for record in stage.records if record.finished] for stage in stages}
    results = {name: [{**r.result, "seed": r.seed} for r in found] for name, found in ended.items() if found}
    seeds = {name: {one["seed"] for one in found if one.get("metrics")} for name, found in results.items()}
    rows = [
        entry
        for entry in report["rows"] or [{"label": name, "stage": name} for name in seeds if seeds[name]]
        if set.intersection(*(seeds.get(name, set()) for name in stages_shown(entry)))
    ]
    inputs = {
        name: references(list((section.get("set") or {}).values()))
        for name, section in pipeline.config["stages"].items()
    }
    known = {entry[key] for entry in rows for key in ("label", "stage")}
    for comparisons in ([entry for entry in report["comparisons"] if _sides(entry) <= known], []):
        try:
            # Without sides that share a seed, or with a metric that a stage has not measured, there is less to show.
            return (
                tabulate({**report, "rows": rows, "comparisons": comparisons}, results, inputs=inputs) if rows else {}
            )
        except UserError:
            continue
    return {}


def _sides(entry: Mapping[str, Any]) -> set[str]:
    return {
        name for name in (entry["a"], entry.get("b"), *(entry.get("over") or ()), *(entry.get("beyond") or ())) if name
    }
