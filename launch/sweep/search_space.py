"""What a sweep searches: the values that each key may take, and who chooses among them.

Parameters of trial k are a function of (sampler.seed, k) and of the results known when it begins: so a resumed sweep draws what a
straight one draws, and two workers never draw the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
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
) -> None:
    """One key of `search`, exactly one of: log, uniform (numbers between two, ends included), int (whole ones), choice (any values)."""


@dataclass(frozen=True)
class Span:
    """kind: log, uniform, int or choice. values: the two ends, or all that can be chosen."""

    kind: str
    values: list[Any]

    @property
    def points(self) -> list[Any] | None:
        """Every value there is; None between two real numbers."""
        if self.kind == "int":
            return list(range(self.values[0], self.values[1] + 1))
        return self.values if self.kind == "choice" else None

    def label(self, value: Any) -> Any:
        """The value as the storage knows it, which holds no lists or mappings: JSON stands for those."""
        return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value

    def value(self, label: Any) -> Any:
        """The value of a label."""
        return (
            next((value for value in self.values if self.label(value) == label), label)
            if self.kind == "choice"
            else label
        )

    def draw(self, trial: Trial, key: str) -> Any:
        """The trial's value: the one it has, or a new one by the study's sampler."""
        if self.kind == "choice":
            labels = [self.label(value) for value in self.values]
            return self.value(trial.suggest_categorical(key, labels))
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(key, low, high)
        return trial.suggest_float(key, low, high, log=self.kind == "log")


Space = Mapping[str, Span]


def read_space(search: Mapping[str, Any], problems: list[str]) -> dict[str, Span]:
    """The `search` section; what is wrong with it is added to problems."""
    if not search:
        problems.append("search: expected at least one key, for example optim.lr: {log: [1e-4, 1e-2]}")
    space = {}
    for key, section in search.items():
        where = f"search.{key}"
        try:
            given = {kind: value for kind, value in validate(section, span).items() if value is not None}
        except ConfigError as error:
            problems += [f"{where}.{problem}" for problem in error.problems]
            continue
        if len(given) != 1:
            said = " and ".join(given) or "nothing"
            problems.append(f"{where}: expected one of log, uniform, int and choice, got {said}")
            continue
        ((kind, values),) = given.items()
        if wrong := _wrong(kind, values):
            problems.append(f"{where}.{kind}: {wrong}")
        space[key] = Span(kind, list(values))
    return space


def _wrong(kind: str, values: list[Any]) -> str:
    if kind == "choice":
        texts = [json.dumps(value, sort_keys=True) for value in values]
        return "" if values and len(set(texts)) == len(texts) else f"expected different values, got {values}"
    low, high = values
    if low >= high:
        return f"expected two ends, the lower first, got {list(values)}"
    return f"expected ends above 0, got {list(values)}" if kind == "log" and low <= 0 else ""


def tpe(number: int, space: Space, *, seed: int = 0, startup: int = 10) -> BaseSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011); the first `startup` trials are random."""
    from optuna.samplers import TPESampler

    # Without the constant liar, workers that begin at one time would all try the same promising place.
    return TPESampler(seed=_own(seed, number), n_startup_trials=startup, constant_liar=True)


def random(number: int, space: Space, *, seed: int = 0) -> BaseSampler:
    """Independent draws."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=_own(seed, number))


def grid(number: int, space: Space) -> BaseSampler:
    """Every combination once, in order, the last key fastest; for choice and int."""
    from optuna.samplers import PartialFixedSampler, RandomSampler

    values = [[span.label(value) for value in span.points or ()] for span in space.values()]
    point = next(itertools.islice(itertools.product(*values), number, None))
    return PartialFixedSampler(dict(zip(space, point, strict=True)), RandomSampler(seed=0))


SAMPLERS: Mapping[str, Callable[..., BaseSampler]] = {"tpe": tpe, "random": random, "grid": grid}


def _own(seed: int, number: int) -> int:
    """A seed for each trial: optuna's samplers keep a generator, which in every new worker would begin anew."""
    return (seed * 1_000_003 + number) % 2**32
