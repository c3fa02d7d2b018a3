"""How good validators are, over many runs whose accuracies on the target are known: correlation of ranks, and what their picks cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ...core.evaluate.intervals import mean_interval
from ...core.evaluate.statistics import Interval
from .ranking import RANK_RESAMPLES, rank_correlation
from .selection import Scoring, choose, picks, regrets

RULE, RANDOM = "rule", "random"
"""Rows beside the validators: the default rule (`choose`), and the mean over all candidates, which a pick by chance costs."""

Costs = tuple[float, float | None, float | None]
"""A mean regret in 0..1, and the ends of its 95 % t-interval."""


class ScoredRun(NamedTuple):
    """The candidates of one run.

    own: their scores among themselves; among: among all candidates of the task that were shown the same images. Both are alike for a
    validator that scores each candidate alone. shown: which images these are; runs of another seed may show others.
    """

    run: str
    task: str
    shown: str
    accuracies: tuple[float, ...]  # on the target, of the candidates in their order
    own: Scoring
    among: Mapping[str, Sequence[float]]


class ValidatorQuality(NamedTuple):
    """How good a validator is. What could not be measured is None: a correlation of the default rule, a pick in runs of one candidate.

    spearman, weighted: mean over tasks, with an interval over runs. in_runs: regret of the pick among the states of one run, mean over the
    runs with two candidates or more. in_tasks: of the pick among all candidates of a task, mean over tasks.
    """

    runs: int
    tasks: int
    candidates: int
    spearman: Interval | None
    weighted: Interval | None
    in_runs: Costs | None
    in_tasks: Costs | None


def validator_quality(
    runs: Sequence[ScoredRun], comparing: Collection[str] = (), *, seed: int = 0, resamples: int = RANK_RESAMPLES
) -> dict[str, ValidatorQuality]:
    """Each validator, then the rule where the runs have what it needs, then a pick by chance.

    A run in which a validator was left out doesn't count for it. Candidates are compared within their task; by the validators `comparing`,
    whose scores depend on the other candidates, within those of the task that were shown the same images. Intervals of correlations draw
    runs with all their candidates, so they say how the means would vary over other runs of these tasks; those of regrets are
    t-intervals, over runs and over tasks.
    """
    names = [*dict.fromkeys(name for run in runs for name in run.own.scores), RULE, RANDOM]
    needed = {RULE: "im", RANDOM: ""}
    found = {}
    for name in names:
        needs = needed.get(name, name)
        with_it = [run for run in runs if not needs or needs in run.own.scores]
        if with_it:
            found[name] = _quality(name, with_it, name in comparing, seed, resamples)
    return found


def _quality(name: str, runs: Sequence[ScoredRun], compares: bool, seed: int, resamples: int) -> ValidatorQuality:
    groups: dict[tuple[str, ...], list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault((run.task, run.shown) if compares else (run.task,), []).append(run)
    in_runs = [_cost(name, run.own, run.accuracies) for run in runs if len(run.accuracies) > 1]
    wholes = [_together(group) for group in groups.values()]
    in_tasks = [_cost(name, *whole) for whole in wholes if len(whole[1]) > 1]
    correlation: Mapping[str, Interval | None] = {}
    if all(name in run.among for run in runs):
        ranked = [(number, run) for number, group in enumerate(groups.values()) for run in group]
        correlation = rank_correlation(
            [score for _, run in ranked for score in run.among[name]],
            [accuracy for _, run in ranked for accuracy in run.accuracies],
            [number for number, run in ranked for _ in run.accuracies],
            [number for number, (_, run) in enumerate(ranked) for _ in run.accuracies],
            seed=seed,
            resamples=resamples,
            coefficients=("spearman", "weighted"),
        )
    return ValidatorQuality(
        len(runs),
        len({run.task for run in runs}),
        sum(len(run.accuracies) for run in runs),
        correlation.get("spearman"),
        correlation.get("weighted"),
        _mean([cost for cost in in_runs if cost is not None]),
        _mean([cost for cost in in_tasks if cost is not None]),
    )


def _together(runs: Sequence[ScoredRun]) -> tuple[Scoring, tuple[float, ...]]:
    """All candidates of one task, with the scores that every run has, and their accuracies."""
    shared = [name for name in runs[0].among if all(name in run.among for run in runs)]
    scores = {name: [score for run in runs for score in run.among[name]] for name in shared}
    names = tuple(f"{run.run} {candidate}" for run in runs for candidate in run.own.names)
    return Scoring(names, scores, {}), tuple(accuracy for run in runs for accuracy in run.accuracies)


def _cost(name: str, scoring: Scoring, accuracies: Sequence[float]) -> float | None:
    """The regret of a pick among these candidates; None where the validator gave no number."""
    if name == RANDOM:
        return max(accuracies) - sum(accuracies) / len(accuracies)
    if name == RULE:
        picked = {RULE: choose(scoring).picked} if "im" in scoring.scores else {}
    else:
        picked = picks(scoring)
    return regrets(picked, accuracies)[name].regret if name in picked else None


def _mean(costs: Sequence[float]) -> Costs | None:
    return mean_interval(costs, span=(0.0, 1.0)) if costs else None
