"""What a pipeline's file says, checked as a whole before anything runs, and the list of jobs that it comes to."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml

from ...core.config.messages import among
from ...core.config.resolve import ConfigError, Section, find, load, validate
from ...core.config.yaml_file import parse
from ...core.errors import UserError
from ...core.run.directory import begun, differing

VERBS = ("pretrain", "probe", "finetune", "adapt")
_REFERENCE = re.compile(r"@([^/]+)(/.*)?")
_OWN_KEYS = {"seed": "seeds", "run.dir": "run.dir"}
_RECORD = "inputs.json"

# (verb, config, overrides) -> the resolved config; raises UserError.
Validate = Callable[[str, str, list[str]], dict[str, Any]]


def place(*, dir: str) -> None:
    """The `run` section. dir: the folder of all stages, result.json and report.html."""


def report_page(
    *,
    title: str = "",
    text: str | list[str] = "",
    columns: dict[str, str] = {},
    rows: list[dict[str, Any]] = [],
    comparisons: list[dict[str, Any]] = [],
) -> None:
    """The `report` section. text: paragraphs under the title. columns: {TEST: heading} of test sets shown beside a row's own.

    rows: one for each stage that measures something, unless given.
    """


def pipeline(
    *,
    run: Annotated[dict[str, Any], Section(place)],
    seeds: int | list[int] = 1,
    stages: dict[str, dict[str, Any]],
    report: Annotated[dict[str, Any], Section(report_page)] = {},
) -> None:
    """A pipeline's file. seeds: N for 0..N-1, or a list."""


def stage(*, verb: str, config: str, set: dict[str, Any] = {}) -> None:
    """One of `stages`. set: {dotted key: value} over the config; "@NAME" is stage NAME's run of the same seed."""


def row(
    *,
    label: str,
    stage: str,
    metric: str | None = None,
    also: dict[str, str] = {},
    group: str = "",
    note: str = "",
    emphasis: bool = False,
) -> None:
    """One of `report.rows`. metric: TEST/PROTOCOL/METRIC, the stage's first by default. also: {heading: metric} of others beside it."""


def comparison(*, label: str, a: str, b: str) -> None:
    """One of `report.comparisons`: row a minus row b, each named by its label or its stage."""


@dataclass(frozen=True)
class Job:
    """One stage of one seed. inputs: fingerprints of the stages it is made from, by name.

    fingerprint: a hash of its own resolved config without `run` and what is null, and of its inputs' fingerprints.
    """

    seed: int
    name: str
    verb: str
    config: str
    overrides: list[str]
    dir: Path
    resolved: dict[str, Any]
    inputs: dict[str, str]
    fingerprint: str


def plan(
    path: str | Path, overrides: Sequence[str], validate_stage: Validate, verbs: Collection[str] = VERBS
) -> tuple[dict[str, Any], list[Job]]:
    """The resolved pipeline and its jobs in order, seed by seed; everything is checked, nothing written.

    Raises ConfigError with every mistake of the pipeline, its stages and its rows, and UserError where results of an
    earlier run in the same folder do not fit.
    """
    inner = [override for override in overrides if override.startswith("stages.")]
    config = load(path, pipeline, [override for override in overrides if override not in inner])
    problems: list[str] = []
    config["seeds"] = _seeds(config["seeds"], problems)
    # A stage that is itself mistaken still has a name that others may use.
    names = list(config["stages"])
    config["stages"] = _each("stages", config["stages"], stage, problems)
    _add_overrides(config["stages"], inner, names, problems)
    _check_stages(config["stages"], verbs, names, problems)
    _check_report(config["report"], names, problems)
    if problems:
        raise ConfigError(problems, str(path))
    jobs = _jobs(config, find(path).parent, validate_stage, problems)
    if problems:
        raise ConfigError(problems, str(path))
    changed = [line for job in jobs for line in _changes(job)]
    if changed:
        raise UserError(
            "\n  ".join(["an earlier run in this folder does not fit:", *changed] if changed[1:] else changed)
        )
    return config, jobs


def _jobs(config: Mapping[str, Any], beside: Path, validate_stage: Validate, problems: list[str]) -> list[Job]:
    jobs: list[Job] = []
    for seed in config["seeds"]:
        done: dict[str, Job] = {}
        folder = Path(config["run"]["dir"]) / f"seed-{seed}"
        for name, section in config["stages"].items():
            file = beside / section["config"]
            overrides = [
                f"{key}={json.dumps(_located(value, folder), ensure_ascii=False)}"
                for key, value in section["set"].items()
            ]
            overrides += [f"seed={seed}", f"run.dir={json.dumps(str(folder / name), ensure_ascii=False)}"]
            given = (section["verb"], str(file) if file.is_file() else section["config"], overrides)
            resolved: dict[str, Any] = {}
            try:
                resolved = validate_stage(*given)
            except UserError as error:
                if seed == config["seeds"][0]:
                    lines = (
                        [f"{error.where}: {p}" for p in error.problems]
                        if isinstance(error, ConfigError)
                        else [str(error)]
                    )
                    problems += [f"stages.{name}: {line}" for line in lines]
            used = dict.fromkeys(references(list(section["set"].values())))
            inputs = {other: done[other].fingerprint for other in used}
            science = _given({key: value for key, value in resolved.items() if key != "run"})
            text = json.dumps([section["verb"], science, inputs], sort_keys=True, default=str)
            fingerprint = hashlib.sha256(text.encode()).hexdigest()
            done[name] = Job(seed, name, *given, folder / name, resolved, inputs, fingerprint)
        jobs += done.values()
    return jobs


def _given(value: Any) -> Any:
    """A config without its nulls: a key that is newer than a run, and null since, leaves what the run was made from."""
    if isinstance(value, Mapping):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list | tuple) else value


def _located(value: Any, folder: Path) -> Any:
    """A value of `set` with each "@NAME" as the directory of that stage's run."""
    if isinstance(value, str):
        match = _REFERENCE.fullmatch(value)
        return f"{folder / match[1]}{match[2] or ''}" if match else value
    if isinstance(value, Mapping):
        return {key: _located(item, folder) for key, item in value.items()}
    return [_located(item, folder) for item in value] if isinstance(value, list) else value


def _changes(job: Job) -> list[str]:
    """Why what stands in the job's folder was not made by this job; nothing if it was, or if nothing stands there."""
    path = job.dir / "config.yaml"
    if not path.is_file() or not begun(job.dir):
        return []
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    keys = differing({**before, "verb": before.get("verb", job.verb)}, {"verb": job.verb, **job.resolved})
    remedy = f"restore it, delete {job.dir}, or choose another run.dir"
    if keys:
        listed = ", ".join(f"{key} ({old!r} there, {new!r} now)" for key, old, new in keys)
        return [f"{job.dir} was run with another {listed}; {remedy}"]
    recorded = _recorded(job).get(job.name, job.inputs)
    others = [name for name in job.inputs if recorded.get(name) != job.inputs[name]]
    return (
        [f"{job.dir} was made from another {', '.join(others)}; delete {job.dir}, or choose another run.dir"]
        if others
        else []
    )


def note_inputs(job: Job) -> dict[str, Any]:
    """What `DIR/seed-S/inputs.json` holds once this job has begun: {stage: {input: fingerprint}}."""
    return {**_recorded(job), job.name: job.inputs}


def inputs_file(job: Job) -> Path:
    return job.dir.parent / _RECORD


def _recorded(job: Job) -> dict[str, Any]:
    path = inputs_file(job)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _seeds(given: int | list[int], problems: list[str]) -> list[int]:
    seeds = list(range(given)) if isinstance(given, int) else given
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        problems.append(f"seeds: expected how many (1 or more), or a list of different seeds, got {given}")
    return seeds


def _each(path: str, sections: Mapping[str, Any], schema: Callable[..., Any], problems: list[str]) -> dict[str, Any]:
    """Sections of one schema, by name; problems get the section's path."""
    resolved = {}
    for name, section in sections.items():
        try:
            resolved[name] = validate(section, schema)
        except ConfigError as error:
            problems += [f"{path}.{name}.{problem}" for problem in error.problems]
    return resolved


def _add_overrides(stages: dict[str, Any], overrides: Sequence[str], names: Sequence[str], problems: list[str]) -> None:
    """`stages.NAME.KEY=VALUE` becomes the last entry of the stage's `set`."""
    for override in overrides:
        place, equals, text = override.partition("=")
        _, name, key = (*place.split(".", 2), "", "")[:3]
        if not equals or not key:
            problems.append(f"{override}: expected stages.NAME.KEY=VALUE, for example stages.simclr.optim.lr=1e-3")
        elif name not in names:
            problems.append(f"{place}: no stage {name}{among(name, names)}")
        elif name in stages:
            stages[name]["set"].pop(key, None)
            try:
                # YAML reserves the @ that begins a stage's name.
                stages[name]["set"][key] = text if text.startswith("@") else parse(text, place, problems)
            except ConfigError as error:
                problems += error.problems


def _check_stages(stages: Mapping[str, Any], verbs: Collection[str], names: Sequence[str], problems: list[str]) -> None:
    if not names:
        problems.append("stages: expected at least one stage")
    for name, section in stages.items():
        above = names[: names.index(name)]
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
            problems.append(f"stages.{name}: a stage's name is its folder; use letters, digits, - and _")
        if section["verb"] not in verbs:
            problems.append(f"stages.{name}.verb: unknown verb {section['verb']}{among(section['verb'], verbs)}")
        for key, value in section["set"].items():
            where = f"stages.{name}.set.{key}"
            if key in _OWN_KEYS:
                problems.append(
                    f"{where}: the pipeline gives each stage its {key}; set {_OWN_KEYS[key]} of the pipeline"
                )
            for other in references(value):
                if other not in names:
                    problems.append(f"{where}: no stage {other}{among(other, above)}")
                elif other not in above:
                    problems.append(f"{where}: @{other} does not come before {name}; a stage may use those above it")


def _check_report(report: dict[str, Any], names: Sequence[str], problems: list[str]) -> None:
    """Rows and comparisons resolved in place."""
    for key, schema in (("rows", row), ("comparisons", comparison)):
        numbered = {str(index): section for index, section in enumerate(report[key])}
        report[key] = list(_each(f"report.{key}", numbered, schema, problems).values())
    for index, entry in enumerate(report["rows"]):
        if entry["stage"] not in names:
            problems.append(f"report.rows.{index}.stage: no stage {entry['stage']}{among(entry['stage'], names)}")
        for key, name in {
            "metric": entry["metric"],
            **{f"also.{key}": name for key, name in entry["also"].items()},
        }.items():
            if name is not None and name.count("/") < 2:
                problems.append(f"report.rows.{index}.{key}: expected TEST/PROTOCOL/METRIC, got {name}")
    for index, entry in enumerate(report["comparisons"]):
        for side in ("a", "b"):
            found = rows_named(report["rows"], entry[side])
            if len(found) != 1:
                names = [entry["label"] for entry in report["rows"]]
                wrong = (
                    f"no row {entry[side]}{among(entry[side], names)}"
                    if not found
                    else f"{len(found)} rows show {entry[side]}; name one by its label"
                )
                problems.append(f"report.comparisons.{index}.{side}: {wrong}")


def rows_named(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The rows that a comparison's side names: by label, else by stage."""
    return [entry for entry in rows if entry["label"] == name] or [entry for entry in rows if entry["stage"] == name]


def references(value: Any) -> list[str]:
    """The stages that a value of `set` names by "@NAME" (or "@NAME/file"), wherever in it."""
    if isinstance(value, str):
        match = _REFERENCE.fullmatch(value)
        return [match[1]] if match else []
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [name for item in inner for name in references(item)]
