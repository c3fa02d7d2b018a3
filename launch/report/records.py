"""Run folders, read for the report.

Any file may be missing or cut short, since a killed run is worth a report too; only a path that is no run is an error.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.documents import Unreadable, read_yaml
from ...core.errors import UserError
from ...core.launchlog import warn
from ...core.manifest import DamagedFile, read_object
from ...core.run.folder import CONFIG
from ...core.run.rows import METRICS, PREDICTIONS
from .folder import MAP, Parts, check_is_run


@dataclass(frozen=True)
class RunRecord:
    """One run folder: config.yaml, run.json (about), metrics.jsonl (rows), result.json, map.json."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    map: dict[str, Any] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)  # a sentence for each file that is not what was written

    @property
    def finished(self) -> bool:
        return bool(self.result)

    @property
    def verb(self) -> str:
        return str(self.about.get("verb") or self.result.get("task") or "run")

    @property
    def seed(self) -> int | None:
        return self.result.get("seed", self.config.get("seed"))

    def pictures(self) -> list[tuple[Path, str]]:
        """(path, caption) of the run's pictures: in the order of captions.json, the rest by name."""
        folder = self.path / "pictures"
        try:
            captions = read_object(folder / "captions.json")
        except (FileNotFoundError, DamagedFile):  # then the file's name is the caption
            captions = {}
        found = {path.name: path for path in sorted(folder.glob("*.png"))}
        names = [name for name in captions if name in found] + [name for name in found if name not in captions]
        return [(found[name], str(captions.get(name, ""))) for name in names]


@dataclass(frozen=True)
class StageRuns:
    """The runs of one experiment, or of one stage of a pipeline: one for each seed."""

    name: str
    records: list[RunRecord]

    @property
    def first(self) -> RunRecord:
        return self.records[0]

    @property
    def results(self) -> list[dict[str, Any]]:
        return [record.result for record in self.records if record.finished]

    @property
    def logged(self) -> list[RunRecord]:
        """The runs that have curves."""
        return [record for record in self.records if record.rows]

    @property
    def seed_names(self) -> list[str]:
        """Of each run that has curves: "seed 0"; "" where it is the only one."""
        logged = self.logged
        return [f"seed {record.seed}" if len(logged) > 1 else "" for record in logged]


def read_run(path: Path) -> RunRecord:
    """Read one run folder. Raises UserError if it holds neither a config nor a result, or if its config cannot be read."""
    check_is_run(path)
    config = path / CONFIG
    try:
        loaded = read_yaml(config) if config.exists() else {}
    except Unreadable as error:
        raise UserError(
            f"{config} is not readable YAML ({error}); restore it or run again in another run.dir"
        ) from error
    parts = Parts(path, METRICS, MAP, PREDICTIONS)
    if not isinstance(loaded, dict):
        parts.damage.append(f"{config} is damaged (it holds no mapping)")
        loaded = {}
    for sentence in parts.damage:
        warn(f"WARNING: {sentence}")
    return RunRecord(path, loaded, parts.about, parts.rows, parts.result, parts.map, parts.damage)


def read_readable(paths: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """The runs that can be read, and a sentence for each that cannot. Raises UserError if there is one path, or if none can be read."""
    records, troubles = list[RunRecord](), list[str]()
    for path in paths:
        try:
            records.append(read_run(path))
        except UserError as error:
            troubles.append(str(error))
    if not records:
        raise UserError(
            troubles[0] if len(troubles) == 1 else f"none of {len(troubles)} runs can be read: {troubles[0]}"
        )
    for sentence in troubles:
        warn(f"WARNING: left out: {sentence}")
    return records, troubles


def is_pipeline(record: RunRecord) -> bool:
    return record.result.get("task") == "pipeline" or ("stages" in record.config and not is_attribution(record))


def is_attribution(record: RunRecord) -> bool:
    return record.result.get("task") == "attribution" or "factors" in record.config


def is_sweep(record: RunRecord) -> bool:
    return record.result.get("task") == "sweep" or "search" in record.config


def stages_of(pipeline: RunRecord, only: Collection[str] | None = None) -> list[StageRuns]:
    """The stages of a pipeline in the order of its config, each with the seeds that were begun. only: names; all by default."""
    folders = [pipeline.path / f"seed-{seed}" for seed in pipeline.config.get("seeds", [])]
    stages = []
    for name in pipeline.config.get("stages", {}):
        if only is not None and name not in only:
            continue
        begun = [folder / name for folder in folders if (folder / name / "config.yaml").is_file()]
        if begun:
            try:
                stages.append(StageRuns(name, read_readable(begun)[0]))
            except UserError as error:
                warn(f"WARNING: the stage {name} is left out: {error}")
    return stages


def by_experiment(records: Iterable[RunRecord]) -> list[StageRuns]:
    """Group runs into experiments: runs whose configs differ only in `seed` and `run` belong together.

    A second run of the same seed is no further evidence, so it becomes an experiment of its own.
    """
    groups: dict[tuple[str, int], list[RunRecord]] = {}
    seen: Counter[tuple[str, int | None]] = Counter()
    for record in records:
        identity = _identity(record)
        groups.setdefault((identity, seen[identity, record.seed]), []).append(record)
        seen[identity, record.seed] += 1
    runs = [sorted(group, key=lambda record: (record.seed is None, record.seed or 0)) for group in groups.values()]
    return [StageRuns(name, group) for name, group in zip(_names(runs), runs, strict=True)]


def _identity(record: RunRecord) -> str:
    science = {key: value for key, value in record.config.items() if key not in ("run", "seed")}
    text = json.dumps([record.verb, science], sort_keys=True, default=str) if science else str(record.path)
    # Backbones from the same stage of a pipeline differ only in the seed's folder.
    return re.sub(r"seed-\d+", "seed-*", text)


def _names(groups: list[list[RunRecord]]) -> list[str]:
    """The last folder of each group's run; with as many parent folders as make the names unique."""
    parts = [
        [part for part in group[0].path.resolve().parts if not re.fullmatch(r"seed-\d+", part)] for group in groups
    ]
    depth = 1
    while depth < max(map(len, parts)) and len({tuple(p[-depth:]) for p in parts}) < len(parts):
        depth += 1
    return [str(Path(*part[-depth:])) for part in parts]
