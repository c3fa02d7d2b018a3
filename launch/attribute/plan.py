"""From factors to cells, and from cells to one pipeline in which equal stages of different cells are one stage."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ...core.config.messages import among
from ...core.config.resolve import ConfigError, find, load
from ...core.run.rows import CELLS
from ..pipeline.checks import REFERENCE, add_overrides, check_stages, read_seeds, references, validate_each
from ..pipeline.plan import STAGE_VERBS, StageJob, Validate, check_pipeline
from ..pipeline.sections import stage
from ..report.claims import MOST_PRIMARY
from .sections import attribution, factor

MOST_FACTORS = 6  # 64 cells
FILE = "cells.yaml"  # the pipeline's file inside the attribution's folder
TIMES = " x "  # between the factors of an interaction


class Attribution(NamedTuple):
    """config: resolved. cells: the response's stage of each of the 2^k cells. pipeline: as a pipeline's file has it."""

    config: dict[str, Any]
    cells: list[str]
    pipeline: dict[str, Any]

    @property
    def factors(self) -> list[str]:
        return list(self.config["factors"])


def plan_attribution(path: str | Path, overrides: Sequence[str]) -> Attribution:
    """Resolve the file, and make the pipeline of all cells; writes nothing, and imports no torch.

    overrides: `seeds=5`, `run.dir=...`, `stages.NAME.KEY=VALUE`. Raises ConfigError with every mistake; those of the stages' own
    configs are the pipeline's to find.
    """
    inner = [override for override in overrides if override.startswith("stages.")]
    config = load(path, attribution, [override for override in overrides if override not in inner])
    problems: list[str] = []
    config["seeds"] = read_seeds(config["seeds"], problems)
    names = list(config["stages"])
    config["stages"] = validate_each("stages", config["stages"], stage, problems)
    add_overrides(config["stages"], inner, names, problems)
    config["factors"] = validate_each("factors", config["factors"], factor, problems)
    _check_factors(config, names, problems)
    config["primary"] = _checked_effects(config, problems)
    if config["response"] not in names:
        problems.append(f"response: no stage {config['response']}{among(config['response'], names)}")
    if config["metric"] is not None and config["metric"].count("/") < 2:
        problems.append(f"metric: expected TEST/PROTOCOL/METRIC, got {config['metric']}")
    if problems:
        raise ConfigError(problems, str(path))
    beside = find(path).parent
    for section in config["stages"].values():
        if (file := beside / section["config"]).is_file():
            section["config"] = str(file.resolve())
    stages, cells = _stages_of_cells(config, problems)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), str(path))
    return Attribution(config, cells, _pipeline(config, stages, cells))


def check_attribution(
    path: str | Path, overrides: Sequence[str], validate: Validate
) -> tuple[Attribution, list[StageJob]]:
    """The plan, and the jobs of its pipeline; nothing stays on the disk, and no torch is imported.

    Raises ConfigError with every mistake of the file and of its stages.
    """
    plan = plan_attribution(path, overrides)
    with tempfile.TemporaryDirectory(prefix="rootstock-attribute-") as folder:
        file = Path(folder) / FILE
        file.write_text(pipeline_text(plan))
        try:
            _, jobs = check_pipeline(file, [], validate)
        except ConfigError as error:
            raise ConfigError(error.problems, str(path)) from None
    return plan, jobs


def pipeline_text(plan: Attribution) -> str:
    """The pipeline of all cells, as a file."""
    return yaml.safe_dump(plan.pipeline, sort_keys=False, allow_unicode=True, width=120)


def on_factors(cell: int, factors: Sequence[str]) -> list[str]:
    """The factors that are on in a cell."""
    return [name for number, name in enumerate(factors) if cell >> number & 1]


def effect_subsets(factors: Sequence[str]) -> list[tuple[str, ...]]:
    """All effects: first those of single factors, then interactions by their order."""
    return [subset for size in range(1, len(factors) + 1) for subset in combinations(factors, size)]


def _check_factors(config: Mapping[str, Any], stages: Sequence[str], problems: list[str]) -> None:
    factors = config["factors"]
    if not 1 <= len(factors) <= MOST_FACTORS:
        problems.append(f"factors: expected 1 to {MOST_FACTORS}, got {len(factors)}; k of them make 2^k cells")
    owners: dict[str, str] = {}
    for name, section in factors.items():
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            problems.append(f"factors.{name}: names of factors are parts of folders' names; use letters, digits and _")
        if section["on"] == section["off"]:
            problems.append(f"factors.{name}: on and off are the same, so nothing changes; say what is different")
        for key in {**section["on"], **section["off"]}:
            head, _, inner = key.partition(".")
            if head not in stages or not inner:
                problems.append(f"factors.{name}: {key} is no STAGE.KEY{among(head, stages)}")
            other = next((k for k in owners if f"{k}.".startswith(f"{key}.") or f"{key}.".startswith(f"{k}.")), None)
            if other is not None and owners[other] != name:
                problems.append(
                    f"factors.{name}: {key} is set by {owners[other]} too, so they could not be told apart; give each keys of its own"
                )
            owners.setdefault(key, name)


def _checked_effects(config: Mapping[str, Any], problems: list[str]) -> list[str]:
    """The primary effects, each with its factors in the file's order."""
    known, found = list(config["factors"]), []
    for text in config["primary"]:
        parts = [part.strip() for part in text.split(TIMES)]
        for part in parts:
            if part not in known:
                problems.append(f"primary: no factor {part}{among(part, known)}")
        if len(set(parts)) < len(parts):
            problems.append(f"primary: {text} names a factor twice")
        found.append(TIMES.join(sorted(parts, key=lambda part: known.index(part) if part in known else 0)))
    if len(found) > MOST_PRIMARY or len(set(found)) < len(found):
        problems.append(f"primary: expected at most {MOST_PRIMARY} different effects, got {', '.join(found)}")
    return found


def _stages_of_cells(config: Mapping[str, Any], problems: list[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The different stages of all cells by name, and each cell's response. A stage is named after the first cell that needs it."""
    factors, stages, known, cells = list(config["factors"]), dict[str, dict[str, Any]](), dict[str, str](), list[str]()
    for cell in range(2 ** len(factors)):
        on = on_factors(cell, factors)
        sections = {name: {**section, "set": dict(section["set"])} for name, section in config["stages"].items()}
        for name, chosen in config["factors"].items():
            for key, value in chosen["on" if name in on else "off"].items():
                head, _, inner = key.partition(".")
                sections[head]["set"].pop(inner, None)  # the later of two overrides holds
                sections[head]["set"][inner] = value
        check_stages(sections, STAGE_VERBS, list(sections), problems)
        if problems:
            return {}, []
        own: dict[str, str] = {}  # names in the pipeline of this cell's stages
        for name in _needed(config["response"], sections):
            section = {**sections[name], "set": _renamed(sections[name]["set"], own)}
            identity = json.dumps([name, section], sort_keys=True, default=str)
            if identity not in known:
                folder = "-".join([name, *(on or ["base"])])
                while folder in stages:  # a stage of the file may be called as another one's cell
                    folder += "-"
                known[identity], stages[folder] = folder, section
            own[name] = known[identity]
        cells.append(own[config["response"]])
    return stages, cells


def _needed(response: str, sections: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """The stages that a response uses, itself included, in the file's order."""
    wanted, waiting = set[str](), [response]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += references(list(sections[name]["set"].values()))
    return [name for name in sections if name in wanted]


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A value of `set` with the stages that it refers to under their names in the pipeline."""
    if isinstance(value, str) and (match := REFERENCE.fullmatch(value)) and match[1] in names:
        return f"@{names[match[1]]}{match[2] or ''}"
    if isinstance(value, Mapping):
        return {key: _renamed(item, names) for key, item in value.items()}
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value


def _pipeline(config: Mapping[str, Any], stages: Mapping[str, Any], cells: Sequence[str]) -> dict[str, Any]:
    factors = list(config["factors"])
    rows = [
        {"label": cell_label(config, on_factors(cells.index(name), factors)), "stage": name, "metric": config["metric"]}
        for name in dict.fromkeys(cells)
    ]
    report = {"title": f"{config['title'] or Path(config['run']['dir']).name}: cells", "rows": rows}
    return {
        "run": {"dir": str(Path(config["run"]["dir"]) / CELLS)},
        "seeds": config["seeds"],
        "stages": dict(stages),
        "report": report,
    }


def cell_label(config: Mapping[str, Any], on: Sequence[str]) -> str:
    """What is on in a cell, in the factors' labels."""
    return " + ".join(config["factors"][name]["label"] or name for name in on) or "all off"
