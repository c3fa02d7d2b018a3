"""The search space of a sweep: the values that each key may take, and the samplers that choose among them.

The parameters of trial k depend only on (sampler.seed, k) and on the results known when it begins: so a resumed sweep draws the same
values as an uninterrupted one, and two workers never draw the same. Each element of a list may be a parameter of its own, so that a sampler
learns of it alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.config.resolve import ConfigError, validate

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial


def span(
    *,
    log: tuple[float, float] | None = None,
    uniform: tuple[float, float] | None = None,
    int: tuple[int, int] | None = None,
    choice: list[Any] | None = None,
    list: list[dict[str, Any]] | None = None,
) -> None:
    """One key of `search`; exactly one of the following has to be given.

    log: Lowest and highest number, both above 0 and included, sampled on a logarithmic scale.
    uniform: Lowest and highest number, both included, sampled on a linear scale.
    int: Lowest and highest integer, both included.
    choice: List of values of any kind.
    list: Elements of a list, each with log, uniform, int or choice of its own; the parameter of element i is called KEY.i.
    """


@dataclass(frozen=True)
class Span:
    """The values of one parameter. kind: log, uniform, int or choice. values: the two ends, or all choices.

    part: (key, place) where it is an element of that key's list.
    """

    kind: str
    values: list[Any]
    part: tuple[str, int] | None = None

    @property
    def points(self) -> Sequence[Any] | None:
        """All values; None for a range of real numbers. Integers are counted, not listed: there may be very many."""
        if self.kind == "int":
            return range(self.values[0], self.values[1] + 1)
        return self.values if self.kind == "choice" else None

    def label(self, value: Any) -> Any:
        """The value as Optuna stores it: lists and mappings as JSON text."""
        return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value

    def value(self, label: Any) -> Any:
        """The value that has this label."""
        return (
            next((value for value in self.values if self.label(value) == label), label)
            if self.kind == "choice"
            else label
        )

    def draw(self, trial: Trial, key: str) -> Any:
        """The value that the trial already has, or a new one from the study's sampler."""
        if self.kind == "choice":
            labels = [self.label(value) for value in self.values]
            return self.value(trial.suggest_categorical(key, labels))
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(key, low, high)
        return trial.suggest_float(key, low, high, log=self.kind == "log")


Space = Mapping[str, Span]
SPANS = ("log", "uniform", "int", "choice")
LARGEST_INTEGER = 2**53


def read_space(search: Mapping[str, Any], problems: list[str]) -> dict[str, Span]:
    """Read the `search` section into parameters by name; its mistakes are added to `problems`."""
    if not search:
        problems.append("search: expected at least one key, for example optim.lr: {log: [1e-4, 1e-2]}")
    space = {}
    for key, section in search.items():
        kind, values = _kind_of(f"search.{key}", section, (*SPANS, "list"), problems)
        if kind == "list" and not values:
            problems.append(f"search.{key}.list: expected at least one element, for example {{int: [16, 64]}}")
        parts = [(f"{key}.{place}", part, (key, place)) for place, part in enumerate(values)] if kind == "list" else []
        for name, part, where in parts:
            inner, ends = _kind_of(f"search.{name}", part, SPANS, problems)
            space |= {name: Span(inner, ends, where)} if inner else {}
        space |= {key: Span(kind, values)} if kind in SPANS else {}
    return space


def _kind_of(where: str, section: Any, kinds: Sequence[str], problems: list[str]) -> tuple[str, list[Any]]:
    """What one section gives, (kind, values); ("", []) if it is wrong, which is added to `problems`."""
    try:
        given = {kind: value for kind, value in validate(section, span).items() if value is not None}
    except ConfigError as error:
        problems += [f"{where}.{problem}" for problem in error.problems]
        return "", []
    if len(given) != 1 or not given.keys() <= set(kinds):
        known = f"{', '.join(kinds[:-1])} and {kinds[-1]}"
        problems.append(f"{where}: expected one of {known}, got {' and '.join(given) or 'nothing'}")
        return "", []
    ((kind, values),) = given.items()
    if kind != "list" and (wrong := _wrong(kind, values)):
        problems.append(f"{where}.{kind}: {wrong}")
    return kind, list(values)


def by_parameter(search: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A checked `search` section by parameter, without nulls: elements of lists have a name each."""
    found: dict[str, dict[str, Any]] = {}
    for key, section in search.items():
        given = {kind: values for kind, values in section.items() if values is not None}
        parts = {f"{key}.{place}": dict(part) for place, part in enumerate(given.get("list", ()))}
        found |= parts or {key: given}
    return found


def as_keys(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a trial by the config's keys: elements are put together to their lists, in order."""
    values: dict[str, Any] = {}
    for name in space:
        part = space[name].part
        if part is None and name in params:
            values[name] = params[name]
        elif part is not None and name in params:
            values.setdefault(part[0], []).append(params[name])
    return values


def _wrong(kind: str, values: list[Any]) -> str:
    if kind == "choice":
        texts = [json.dumps(value, sort_keys=True) for value in values]
        return "" if values and len(set(texts)) == len(texts) else f"expected different values, got {values}"
    low, high = values
    if low >= high:
        return f"expected two ends, the lower first, got {list(values)}"
    if kind == "int" and max(abs(low), abs(high)) > LARGEST_INTEGER:
        return f"expected ends within 2**53, beyond which samplers round integers, got {list(values)}"
    return f"expected ends above 0, got {list(values)}" if kind == "log" and low <= 0 else ""


def tpe(number: int, space: Space, *, seed: int = 0, startup: int = 10) -> BaseSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), with a cost that of several objectives (Ozaki et al. 2022).

    seed: Seed of the sampler.
    startup: Number of random trials at the beginning.
    """
    from optuna.samplers import TPESampler

    # Without the constant liar, workers that begin at the same time would all try similar parameters.
    return TPESampler(seed=_trial_seed(seed, number), n_startup_trials=startup, constant_liar=True)


def random(number: int, space: Space, *, seed: int = 0) -> BaseSampler:
    """Independent random draws.

    seed: Seed of the sampler.
    """
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=_trial_seed(seed, number))


def nsga2(number: int, space: Space, *, seed: int = 0, population: int = 8) -> BaseSampler:
    """NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017): children of the points that no other surpasses, for a sweep with a cost.

    seed: Seed of the sampler.
    population: Number of points of a generation; the first one is drawn evenly.
    """
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=_trial_seed(seed, number), population_size=population)


def grid(number: int, space: Space) -> BaseSampler:
    """Every combination once, in order, the last key changing fastest; for choice and int only."""
    from optuna.samplers import PartialFixedSampler, RandomSampler

    point = {}
    for key, span in reversed(list(space.items())):
        values = span.points or ()
        number, place = divmod(number, len(values))
        point[key] = span.label(values[place])
    return PartialFixedSampler(point, RandomSampler(seed=0))


SAMPLERS: Mapping[str, Callable[..., BaseSampler]] = {"tpe": tpe, "nsga2": nsga2, "random": random, "grid": grid}


def _trial_seed(seed: int, number: int) -> int:
    """A seed for each trial: the generator inside an Optuna sampler would start again from the same state in every new worker."""
    return (seed * 1_000_003 + number) % 2**32
