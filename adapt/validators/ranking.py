"""How well validators rank many runs: correlation of ranks with the accuracy on the target, and the regret of their picks, with intervals.

For studies after the fact, in which accuracies are known. Scores of different tasks are not comparable, so a correlation is taken within
each task and averaged over tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, rankdata

from ...core.evaluate.counts import Floats, Ints
from ...core.evaluate.intervals import mean_interval
from ...core.evaluate.statistics import Interval, bootstrap_intervals, cluster_numbers, of_images
from .selection import Scoring, picks, regrets

RANK_RESAMPLES = 1000


class ValidatorQuality(NamedTuple):
    """How well a validator does over several tasks."""

    tasks: int
    regret: tuple[float, float | None, float | None]  # mean over tasks and 95 % t-interval, in 0..1
    spearman: Interval
    kendall: Interval


def rank_correlation(
    scores: Sequence[float],
    accuracies: Sequence[float],
    tasks: Sequence[int] | None = None,
    drawn: Sequence[int] | None = None,
    *,
    seed: int = 0,
    resamples: int = RANK_RESAMPLES,
) -> dict[str, Interval]:
    """{"spearman", "kendall" (tau-b)}: correlation of ranks within each task, mean over tasks, with a bootstrap interval of 95 %.

    scores: of candidates, larger is better; one that is not a number ranks last. accuracies: on the target. tasks: which candidates are
    compared; all by default. drawn: what is drawn as a whole in the bootstrap, as the candidates of one run are; each candidate by
    default. A task in which all scores are equal counts 0; without two candidates it doesn't count.
    """
    score = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    accuracy = np.asarray(accuracies, dtype=np.float64)
    task = np.zeros(len(score), dtype=np.int64) if tasks is None else np.asarray(tasks, dtype=np.int64)
    member, clusters = cluster_numbers(np.arange(len(score)) if drawn is None else np.asarray(drawn))
    groups = [np.flatnonzero(task == t) for t in np.unique(task)]

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        rows = [_correlations(score, accuracy, groups, w) for w in weights.astype(np.int64)]
        spearman, kendall = np.array(rows).T
        return {"spearman": spearman, "kendall": kendall}

    return bootstrap_intervals(
        of_images(member, statistic), clusters, seed=seed, resamples=resamples, method="percentile"
    )


def _correlations(score: Floats, accuracy: Floats, groups: Sequence[Ints], weights: Ints) -> tuple[float, float]:
    """Mean Spearman's and Kendall's correlation over groups of rows, each row as often as its weight says."""
    found: list[tuple[float, float]] = []
    for rows in groups:
        drawn = np.repeat(rows, weights[rows])
        if len(np.unique(drawn)) < 2:
            continue
        a, b = rankdata(score[drawn]), rankdata(accuracy[drawn])
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            found.append((0.0, 0.0))
            continue
        found.append((float(np.corrcoef(a, b)[0, 1]), _first(kendalltau(a, b))))
    return (float(np.mean([s for s, _ in found])), float(np.mean([k for _, k in found]))) if found else (np.nan, np.nan)


def _first(found: Any) -> float:
    return float(found[0])


def validator_quality(
    scorings: Mapping[str, Scoring],
    accuracies: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = RANK_RESAMPLES,
) -> dict[str, ValidatorQuality]:
    """Each validator over several tasks. scorings: by task, `score_candidates` of its candidates; accuracies: of these, on the target.

    A validator that was left out in some task is compared on the others.
    """
    names = dict.fromkeys(name for scoring in scorings.values() for name in scoring.scores)
    lost = {task: regrets(picks(scoring), accuracies[task]) for task, scoring in scorings.items()}
    found = {}
    for name in names:
        tasks = [task for task, scoring in scorings.items() if name in scoring.scores]
        numbers = [i for i, task in enumerate(tasks) for _ in scorings[task].names]
        correlation = rank_correlation(
            [score for task in tasks for score in scorings[task].scores[name]],
            [value for task in tasks for value in accuracies[task]],
            numbers,
            seed=seed,
            resamples=resamples,
        )
        costs = [lost[task][name].regret for task in tasks if name in lost[task]]
        regret = mean_interval(costs, span=(0.0, 1.0)) if costs else (float("nan"), None, None)
        found[name] = ValidatorQuality(len(tasks), regret, correlation["spearman"], correlation["kendall"])
    return found
