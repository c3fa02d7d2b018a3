"""The primary contrasts of a table: at most four, named before the first run; paired by seed and by image; Holm over these alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtr

from ...core.evaluate.definitions import definition_of
from ...core.evaluate.nested import ImageScores, Nested, nested, paired_scores
from ...core.evaluate.power import seeds_needed
from ...core.evaluate.statistics import holm
from .answers import Answers, aligned
from .claims import LARGEST_P, finite_or_none, judge, room_of, stages_shown
from .results import compare, span_of

_SEED = 0  # of the bootstrap
AnswersOf = Callable[[str, int], Mapping[str, Answers]]  # (stage, seed) -> the answers by TEST/PROTOCOL


def primary_contrasts(
    comparisons: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]], answers: AnswersOf
) -> list[dict[str, Any]]:
    """The judged primary contrasts, for result.json.

    comparisons: of the report's section, resolved. rows: the table's rows by label, and by stage where no label is so called.
    answers: of one run, {} where it kept none; then the interval is over seeds alone.
    Each has what `compare` says, with interval and p over seeds and images where both rows' metric is an accuracy, and: claim, margin,
    resampled (what the interval is over), images, p, adjusted (Holm), of (how many), holds, seeds_needed.
    """
    found = [_contrast(entry, rows[entry["a"]], rows[entry["b"]], answers) for entry in comparisons if entry["primary"]]
    for one, adjusted in zip(found, holm([one["p"] for one in found]), strict=True):
        one |= {"adjusted": adjusted, "of": len(found), "holds": one.pop("inside") and adjusted < LARGEST_P}
    return found


def _contrast(
    entry: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any], answers: AnswersOf
) -> dict[str, Any]:
    found = compare(a, b, entry["label"])
    seeds, values = found["seeds"], found["values"]
    least, most = span_of(a["metric"], [*a["values"], *b["values"]])
    pairs = _by_image(a, b, seeds, answers)
    note = pairs if isinstance(pairs, str) else ""
    images, p_of = 0, (lambda null: student_p(values, null))
    if not isinstance(pairs, str):
        both = nested(pairs, seed=_SEED)
        over = both.interval(seed=_SEED, span=(least - most, most - least))
        found |= {"low": finite_or_none(over.low), "high": finite_or_none(over.high)}
        images, p_of = sum(len(one.values) for one in pairs[0]), _p_of(both)
    definition = definition_of(a["metric"])
    higher = definition is None or definition.better == "higher"
    claim, margin = entry["claim"], entry["margin"]
    bounds = (found["low"], found["high"])
    verdict = judge(claim, margin, found["mean"], bounds, p_of, higher)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    room = room_of(claim, margin, found["mean"], higher)
    over_what = [word for word, there in (("seeds", len(seeds) > 1), ("images", images > 0)) if there]
    return found | {
        "metric": a["metric"],
        "claim": claim,
        "margin": margin,
        "resampled": " and ".join(over_what),
        "images": images,
        "p": verdict.p,
        "inside": verdict.inside,
        "seeds_needed": seeds_needed(spread, room) if len(values) > 1 and room > 0 else None,
        "note": note,
    }


def over_images(row: Mapping[str, Any], answers: AnswersOf) -> list[float] | None:
    """The 95 % interval of a row's mean accuracy over seeds, and over test images within them; None where predictions were not kept."""
    key, _, metric = row["metric"].rpartition("/")
    stages = stages_shown(row)
    found = [[answers(stage, seed).get(key) for stage in stages] for seed in row["seeds"]]
    if metric != "accuracy" or any(one is None for tasks in found for one in tasks):
        return None
    scores = [[ImageScores(one.correct, one.images.drawn) for one in tasks if one is not None] for tasks in found]
    _, low, high, _ = nested(scores, seed=_SEED).interval(seed=_SEED, span=(0.0, 1.0))
    return None if low is None or high is None else [low, high]


def _p_of(found: Nested) -> Callable[[float], float]:
    return lambda null: found.p(null)


def student_p(values: Sequence[float], null: float = 0.0) -> float:
    """Two-sided p of "the mean is `null`" by Student's t over seeds alone; 1 for one seed."""
    if len(values) < 2:
        return 1.0
    away, spread = float(np.mean(values)) - null, float(np.std(values, ddof=1)) / len(values) ** 0.5
    if not spread:
        return 0.0 if away else 1.0
    return 2 * float(stdtr(len(values) - 1, -abs(away) / spread))


def _by_image(
    a: Mapping[str, Any], b: Mapping[str, Any], seeds: Sequence[int], answers: AnswersOf
) -> list[list[ImageScores]] | str:
    """The differences of right answers, [S][T]; or why there are none, in words."""
    keys = tuple(row["metric"].rpartition("/")[0] for row in (a, b))
    if any(row["metric"].rpartition("/")[2] != "accuracy" for row in (a, b)):
        return "only accuracies are paired image by image"
    stages = [stages_shown(row) for row in (a, b)]
    if len(stages[0]) != len(stages[1]):
        return "the rows are means over different numbers of tasks"
    found = []
    for seed in seeds:
        tasks = []
        for first, second in zip(*stages, strict=True):
            sides = answers(first, seed), answers(second, seed)
            if any(key not in side for key, side in zip(keys, sides, strict=True)):
                return f"seed {seed} of {first} or {second} kept no predictions"
            pair = aligned(*sides, (keys[0], keys[1]))
            if isinstance(pair, str):
                return f"seed {seed}: {pair}"
            tasks.append(paired_scores(*(ImageScores(one.correct, one.images.drawn) for one in pair)))
        found.append(tasks)
    return found
