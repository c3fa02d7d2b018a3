"""Accuracy of classes grouped by how many training images they have: many, medium and few (Liu et al. 2019, arXiv:1904.05160)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UserError
from .counts import Floats, class_counts, split_counts
from .scores import Scored
from .statistics import bootstrap_intervals, cluster_numbers, of_sums

FEW, MEDIUM, MANY = "accuracy_few", "accuracy_medium", "accuracy_many"


def check_cuts(cuts: Sequence[int] | None) -> None:
    """Raises UserError for cuts that are not in order."""
    if cuts is not None and not 1 <= cuts[0] <= cuts[1]:
        raise UserError(
            f"data.class_groups: expected two numbers of training images, the smaller one first, got {list(cuts)}; [20, 100] is usual"
        )


def group_classes(counts: Sequence[int], cuts: Sequence[int]) -> dict[str, list[int]]:
    """The classes of each group that has some. counts: training images by class. Few: below cuts[0]; many: above cuts[1]."""
    found: dict[str, list[int]] = {}
    for name, inside in (
        (MANY, [n > cuts[1] for n in counts]),
        (MEDIUM, [cuts[0] <= n <= cuts[1] for n in counts]),
        (FEW, [n < cuts[0] for n in counts]),
    ):
        if any(inside):
            found[name] = [k for k, there in enumerate(inside) if there]
    return found


def add_class_groups(scored: Scored, counts: Sequence[int], cuts: Sequence[int] | None) -> None:
    """Add each group's mean recall over the classes that a test has, with intervals over its images, to every protocol.

    counts: training images by class. cuts: None adds nothing.
    """
    if cuts is None:
        return
    groups = group_classes(counts, cuts)
    for key, saved in scored.kept.scores.items():
        images = scored.kept.tests[key.partition("/")[0]]
        draws = saved.scores if saved.scores.ndim == 3 else saved.scores[None]
        member, clusters = cluster_numbers(images.drawn)
        labels, members = np.tile(images.labels, len(draws)), np.tile(member, len(draws))
        predictions = draws.argmax(axis=2).reshape(-1)
        table = class_counts(labels, predictions, members, clusters, len(counts))

        def accuracies(sums: Floats) -> dict[str, Floats]:
            hits, support, _ = split_counts(sums)
            recall = np.divide(hits, support, out=np.full(hits.shape, np.nan), where=support > 0)
            return {name: _mean_of_known(recall[:, own]) for name, own in groups.items()}

        found = bootstrap_intervals(of_sums(table, accuracies), clusters, seed=scored.seed)
        for name, one in found.items():
            if np.isfinite(one.estimate):
                scored.metrics[f"{key}/{name}"] = float(one.estimate)
                if one.low is not None and one.high is not None:
                    scored.intervals[f"{key}/{name}"] = [one.low, one.high]
        scored.details[key]["class_groups"] = {name: [scored.classes[k] for k in own] for name, own in groups.items()}


def _mean_of_known(values: Floats) -> Floats:
    """[B, K] -> the mean of each row's numbers, [B]; NaN where it has none."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
