"""A sweep's file, checked as a whole before anything starts.

A trial is exactly the command `rootstock VERB CONFIG set... search... run.dir=DIR/trial-0007`. With `verb: run` a trial is a pipeline, so
that pretraining can be tuned by the probe that follows it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.config.messages import show
from ...core.config.resolve import ConfigError, find, load
from ...core.config.yaml_file import override_of
from ...core.run.folder import run_folder
from ..pipeline.plan import plan_pipeline
from ..verbs import resolve
from .cost import Cost, read_cost
from .objective import LOOKED, Objective, read_objective, selection_word, stricter_selection
from .prefilter import check_prefilter
from .search_space import Span, as_keys, read_space
from .sections import sweep

# run.dir of the configs that are only checked: the stages of a pipeline refer to each other by it, and nothing is written there.
_NOWHERE = Path("TRIAL")
# A grid with more is tried only by who says how many trials.
MOST_POINTS = 10_000
Stages = Mapping[str, tuple[str, Mapping[str, Any]]]  # (verb, resolved config) by stage; a single run has the name ""


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    config: the resolved file. file: path of the trials' config. base: overrides that all trials share. cost: the second objective, if any.
    identity: the part that must not change when the sweep is continued. verbs: of the sections of its `config`, by name.
    """

    config: dict[str, Any]
    dir: Path
    verb: str
    file: str
    base: list[str]
    space: dict[str, Span]
    trials: int
    objective: Objective
    selection: str
    identity: dict[str, Any]
    verbs: Mapping[str, str]
    cost: Cost | None

    @property
    def maximize(self) -> bool:
        return self.config["direction"] == "maximize"

    @property
    def filtered(self) -> bool:
        """Whether points are scored before the trials."""
        return self.config["prefilter"]["name"] != "none"

    @property
    def first(self) -> dict[str, Any]:
        """The point at the first value of each parameter."""
        return {name: span.values[0] for name, span in self.space.items()}

    def folder(self, number: int) -> Path:
        return self.dir / f"trial-{number:04d}"

    def overrides(self, number: int, params: Mapping[str, Any]) -> list[str]:
        """The trial's command line after the config."""
        return [*self.base, *_overrides(as_keys(self.space, params)), _run_dir(self.folder(number))]

    def elsewhere(self, values: Mapping[str, Any]) -> list[str]:
        """The command line of a run that is only built, with these overrides by key."""
        return [*self.base, *_overrides(values), _run_dir(_NOWHERE)]

    def shortened(self, params: Mapping[str, Any], steps: int, folder: Path) -> list[str]:
        """The command line of a trial in which each stage that trains has so many steps."""
        values = as_keys(self.space, params)
        stages = _resolve(self.verb, self.file, self.elsewhere(values))
        trained = [f"stages.{name}." if name else "" for name, (_, section) in stages.items() if "optim" in section]
        durations = {f"{prefix}optim.duration": steps for prefix in trained}
        return [*self.base, *_overrides({**values, **durations}), _run_dir(folder)]

    def command(self, params: Mapping[str, Any], *more: str) -> str:
        """The command that repeats a trial by hand."""
        words = [*self.base, *_overrides(as_keys(self.space, params)), *more]
        return shlex.join(["rootstock", self.verb, self.file, *words])


def plan_sweep(path: str, overrides: Sequence[str]) -> Sweep:
    """Read and check a sweep; writes nothing.

    Raises ConfigError with the mistakes of the file and of its search keys, and UserError for an objective that must not be tuned.
    """
    config = load(path, sweep, overrides)
    problems: list[str] = []
    space = read_space(config["search"], problems)
    for section, keys in (("set", config["set"]), ("search", config["search"])):
        problems += [f"{section}.{key}: {why}" for key in keys if (why := _refused(section, key))]
    trials, cost = _trials(config, space, problems), read_cost(config["cost"], problems)
    check_prefilter(config["prefilter"], config["sampler"]["name"], problems)
    if problems:
        raise ConfigError(problems, path)
    beside = find(path, sweep.__name__).parent / config["config"]
    file = str(beside) if beside.is_file() else config["config"]
    base = _overrides(config["set"])

    def stages(params: Mapping[str, Any]) -> Stages:
        return _resolve(config["verb"], file, [*base, *_overrides(as_keys(space, params)), _run_dir(_NOWHERE)])

    first = {key: span.values[0] for key, span in space.items()}
    resolved = _check_space(space, first, stages, path)
    if cost is not None and cost.reference is not None:
        _check_reference(config["verb"], file, [*base, *_overrides(cost.reference), _run_dir(_NOWHERE)], path)
    objective = read_objective(config["objective"], config["verb"], resolved)
    verb, measured = resolved[objective.stage]
    word = selection_word(objective, verb, measured, config["selection"])
    selection = stricter_selection(word, resolved)
    base += _selection_overrides(selection, resolved)
    alone, kept = stages(first), ("verb", "search", "direction", "sampler")
    # Sweeps of earlier versions have neither a cost nor a filter.
    more = {"cost": config["cost"]} if cost is not None else {}
    more |= {"prefilter": config["prefilter"]} if config["prefilter"]["name"] != "none" else {}
    identity = (
        {key: config[key] for key in kept}
        | more
        | {
            "objective": "/".join(filter(None, objective)),
            "selection": selection,
            # Resolved, so that an edit of the trials' config is noticed.
            "config": {name or verb: without_run(section) for name, (verb, section) in alone.items()},
        }
    )
    return Sweep(
        config,
        run_folder(config["run"]["dir"]),
        config["verb"],
        file,
        base,
        space,
        trials,
        objective,
        selection,
        identity,
        {name or verb: verb for name, (verb, _) in alone.items()},
        cost,
    )


def _refused(section: str, key: str) -> str:
    """Why `section` must not have this key; empty if it may."""
    parts = key.split(".")
    inner = parts[2:] if parts[0] == "stages" else parts  # stages.NAME.KEY belongs to a pipeline
    if inner == ["run", "dir"]:
        return "each trial gets a folder of its own; take it out"
    if section == "search" and inner in (["seed"], ["seeds"]):
        return "a seed is no hyper-parameter; the best of several seeds is chance"
    if section == "search" and inner[:1] == ["run"]:
        return "keys under run change no result; put this one under set"
    return ""


def _trials(config: Mapping[str, Any], space: Mapping[str, Span], problems: list[str]) -> int:
    """The number of trials; all combinations of a grid by default."""
    most = math.inf
    if config["sampler"]["name"] == "grid":
        counts = [len(span.points) if span.points is not None else 0 for span in space.values()]
        without = [key for key, span in space.items() if span.points is None]
        problems += [f"search.{key}: a grid needs choice or int here" for key in without]
        most = math.prod(counts) if not without else most
    trials = config["trials"] if config["trials"] is not None else most
    if trials == math.inf:
        problems.append("trials: missing; say how many")
    elif config["trials"] is None and most > MOST_POINTS:
        problems.append(
            f"trials: the grid has {most:,} points; say how many of them are tried, or make the ranges smaller"
        )
    elif not 1 <= trials <= most:
        problems.append(
            f"trials: expected 1 or more{f', and at most the {most} points of the grid' if most < math.inf else ''}, got {trials}"
        )
    return 0 if trials == math.inf else int(trials)


def _resolve(verb: str, file: str, overrides: list[str]) -> Stages:
    if verb != "run":
        return {"": (verb, resolve(verb, file, overrides))}
    _, jobs = plan_pipeline(file, overrides, resolve)
    return {job.name: (job.verb, job.resolved) for job in jobs if job.seed == jobs[0].seed}


def _check_space(
    space: Mapping[str, Span], first: Mapping[str, Any], stages: Callable[[Mapping[str, Any]], Stages], path: str
) -> Stages:
    """Resolve the trials' config with each end or choice of one key, the other keys at their first value.

    Returns the stages at the first values. Raises ConfigError with all values that are refused.
    """
    problems: list[str] = []
    try:
        resolved = stages(first)
    except ConfigError as error:
        where = f"{error.where}: " if error.where else ""
        keys = [span.part[0] if span.part is not None else name for name, span in space.items()]
        of_search = tuple(f"{key}{end}" for key in keys for end in ".:")
        lines = [f"search.{line}" if line.startswith(of_search) else where + line for line in error.problems]
        raise ConfigError(lines, path) from None
    for key, span in space.items():
        for value in span.values[1:]:
            try:
                stages({**first, key: value})
            except ConfigError as error:
                problems += [f"search.{key}: with {show(value)}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems, path)
    return resolved


def _check_reference(verb: str, file: str, overrides: list[str], path: str) -> None:
    """Raises ConfigError if the config of the reference is wrong."""
    try:
        _resolve(verb, file, overrides)
    except ConfigError as error:
        raise ConfigError([f"cost.reference: {problem}" for problem in error.problems], path) from None


def _selection_overrides(word: str, stages: Stages) -> list[str]:
    """Overrides that record in each trial's result how its hyper-parameters were chosen; a config that already says more keeps its word."""
    return [
        f"{f'stages.{name}.' if name else ''}data.selection={word}"
        for name, (_, section) in stages.items()
        if "selection" in section["data"] and section["data"]["selection"] not in LOOKED
    ]


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [override_of(key, value) for key, value in values.items()]


def _run_dir(folder: Path) -> str:
    return override_of("run.dir", str(folder))


def without_run(section: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config without its section `run`, which changes no result."""
    return {key: value for key, value in section.items() if key != "run"}
