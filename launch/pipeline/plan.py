"""A pipeline's file, checked as a whole before anything runs, and the list of its jobs."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.config.resolve import ConfigError, find, load
from ...core.config.yaml_file import CONFIGS, override_of
from ...core.documents import read_mapping
from ...core.errors import UserError
from ...core.launchlog import warn
from ...core.manifest import DamagedFile, read_record
from ...core.run.compare import begun, differing
from ...core.run.folder import run_folder
from .checks import REFERENCE, add_overrides, check_report, check_stages, read_seeds, references, validate_each
from .grid import expand
from .sections import pipeline, stage

STAGE_VERBS = ("pretrain", "probe", "finetune", "adapt")
_INPUTS = "inputs.json"

# (verb, config, overrides) -> the resolved config; raises UserError.
Validate = Callable[[str, str, list[str]], dict[str, Any]]


@dataclass(frozen=True)
class StageJob:
    """One stage of one seed.

    inputs: fingerprint of each stage that this one uses, by name.
    fingerprint: hash of the resolved config, without `run` and null values, and of the inputs' fingerprints.
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


def plan_pipeline(
    path: str | Path, overrides: Sequence[str], validate_stage: Validate, verbs: Collection[str] = STAGE_VERBS
) -> tuple[dict[str, Any], list[StageJob]]:
    """The resolved pipeline and its jobs in order, seed by seed. Checks everything and writes nothing.

    Raises ConfigError as `check_pipeline`, and UserError if the folder holds results of an earlier run that do not match.
    """
    config, jobs = check_pipeline(path, overrides, validate_stage, verbs)
    changed: list[str] = []
    unchanged: set[Path] = set()  # folders of stages whose run fits
    for job in jobs:
        lines = _changes(job, validate_stage, unchanged)
        changed += lines
        if not lines:
            unchanged.add(job.dir)
    if changed:
        raise UserError(
            "\n  ".join(["an earlier run in this folder does not fit:", *changed] if changed[1:] else changed)
        )
    return config, jobs


def check_pipeline(
    path: str | Path, overrides: Sequence[str], validate_stage: Validate, verbs: Collection[str] = STAGE_VERBS
) -> tuple[dict[str, Any], list[StageJob]]:
    """The resolved pipeline and its jobs, whatever its folder holds; imports no torch.

    Raises ConfigError with every mistake of the pipeline, its stages and its rows.
    """
    inner = [override for override in overrides if override.startswith("stages.")]
    config = load(path, pipeline, [override for override in overrides if override not in inner])
    problems: list[str] = []
    config["seeds"] = read_seeds(config["seeds"], problems)
    expand(config, problems)
    # Taken before the stages are checked, so that references to a stage with a mistake are not reported as well.
    names = list(config["stages"])
    config["stages"] = validate_each("stages", config["stages"], stage, problems)
    add_overrides(config["stages"], inner, names, problems)
    check_stages(config["stages"], verbs, names, problems)
    check_report(config["report"], names, problems)
    if problems:
        raise ConfigError(problems, str(path))
    jobs = _jobs(config, find(path).parent, validate_stage, problems)
    if problems:
        raise ConfigError(problems, str(path))
    return config, jobs


def found_again(config: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The pipeline as its run's folder records it: stages name files that lie beside `path` by their whole paths."""
    beside = find(path).resolve().parent
    stages = {
        name: {**section, "config": str(file)}
        if (file := beside / section["config"]).is_file() and not file.is_relative_to(CONFIGS)
        else section
        for name, section in config["stages"].items()
    }
    return {**config, "stages": stages}


def _jobs(config: Mapping[str, Any], beside: Path, validate_stage: Validate, problems: list[str]) -> list[StageJob]:
    jobs: list[StageJob] = []
    for seed in config["seeds"]:
        done: dict[str, StageJob] = {}
        folder = run_folder(config["run"]["dir"]) / f"seed-{seed}"
        for name, section in config["stages"].items():
            file = beside / section["config"]
            overrides = [override_of(key, _with_folders(value, folder)) for key, value in section["set"].items()]
            overrides += [f"seed={seed}", override_of("run.dir", str(folder / name))]
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
            fingerprint = _fingerprint(section["verb"], resolved, inputs)
            done[name] = StageJob(seed, name, *given, folder / name, resolved, inputs, fingerprint)
        jobs += done.values()
    return jobs


def _without_nulls(value: Any) -> Any:
    """A config without its nulls, so that a new key whose default is null does not change the fingerprints of old runs."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _with_folders(value: Any, folder: Path) -> Any:
    """A value of `set` with each "@NAME" replaced by the run folder of that stage."""
    if isinstance(value, str):
        match = REFERENCE.fullmatch(value)
        return f"{folder / match[1]}{match[2] or ''}" if match else value
    if isinstance(value, Mapping):
        return {key: _with_folders(item, folder) for key, item in value.items()}
    return [_with_folders(item, folder) for item in value] if isinstance(value, list) else value


def _changes(job: StageJob, validate_stage: Validate, unchanged: Collection[Path]) -> list[str]:
    """Why the run in the job's folder was not made by this job; empty if it was, or if there is none.

    unchanged: folders of earlier stages whose run fits, where the fingerprint that an earlier version computed is valid too.
    """
    path = job.dir / "config.yaml"
    if not path.is_file() or not begun(job.dir):
        return []
    before = read_mapping(path)
    # Keys that are newer than the run take their defaults. A config that no longer resolves is compared as it is.
    with contextlib.suppress(UserError):
        before = validate_stage(job.verb, str(path), [])
    keys = differing({**before, "verb": before.get("verb", job.verb)}, {"verb": job.verb, **job.resolved})
    remedy = f"restore it, delete {job.dir}, or choose another run.dir"
    if keys:
        listed = ", ".join(f"{key} ({old!r} there, {new!r} now)" for key, old, new in keys)
        return [f"{job.dir} was run with another {listed}; {remedy}"]
    if not os.path.lexists(inputs_file(job)):
        warn(
            f"WARNING: {inputs_file(job)} is missing, so the stages beside it are taken to be of this pipeline; it is made anew"
        )
    recorded = _recorded(job).get(job.name, job.inputs)
    valid = {name: {now} for name, now in job.inputs.items()}
    for name in valid:
        if job.dir.parent / name in unchanged:
            valid[name].add(_stored_fingerprint(job, name))
    others = [name for name in valid if recorded.get(name) not in valid[name]]
    return (
        [f"{job.dir} was made from another {', '.join(others)}; delete {job.dir}, or choose another run.dir"]
        if others
        else []
    )


def _stored_fingerprint(job: StageJob, name: str) -> str:
    """The fingerprint of an input stage as the version that ran it computed it: of its config.yaml, without the keys added since."""
    path = job.dir.parent / name / "config.yaml"
    if not path.is_file():
        return ""
    config = read_mapping(path)
    return _fingerprint(config.pop("verb", ""), config, _recorded(job).get(name, {}))


def _fingerprint(verb: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """A hash of a stage's config without `run` and nulls, and of the fingerprints of its inputs."""
    science = _without_nulls({key: value for key, value in config.items() if key != "run"})
    text = json.dumps([verb, science, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def domains_of(resolved: Mapping[str, Any]) -> tuple[str, ...]:
    """The domains of an adaptation's task, source and target: their URIs without options and splits; () for other stages."""
    data = resolved.get("data") or {}
    if not (data.get("source") and data.get("target")):
        return ()
    named = (data[side] if isinstance(data[side], list) else [data[side]] for side in ("source", "target"))
    return tuple(re.split("[?#]", str(uri))[0] for uris in named for uri in uris)


def recorded_inputs(job: StageJob) -> dict[str, Any]:
    """The content of `DIR/seed-S/inputs.json` once this job has begun: {stage: {input: fingerprint}}."""
    return {**_recorded(job), job.name: job.inputs}


def inputs_file(job: StageJob) -> Path:
    return job.dir.parent / _INPUTS


def _recorded(job: StageJob) -> dict[str, Any]:
    path = inputs_file(job)
    try:
        return read_record(path)
    except FileNotFoundError:
        return {}
    except DamagedFile as error:
        raise UserError(
            f"{error}; restore it, or delete it if the stages in {path.parent} are of this pipeline"
        ) from None
