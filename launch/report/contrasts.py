"""The primary contrasts of a table: at most four, named before the first run; paired by seed and by image; Holm over these alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtr

from ...core.evaluate.definitions import definition_of
from ...core.evaluate.factorial import share_interval_of
from ...core.evaluate.nested import ImageScores, Nested, nested, paired_scores
from ...core.evaluate.power import seeds_needed
from ...core.evaluate.statistics import holm
from .answers import Answers, aligned
from .claims import (
    LARGEST_P,
    ContrastVerdict,
    finite_or_none,
    judge,
    level_among,
    not_by_images,
    room_of,
    stages_shown,
)
from .results import FEWEST_SEEDS, compare, difference_span

_SEED = 0  # of the bootstrap
AnswersOf = Callable[[str, int], Mapping[str, Answers]]  # (stage, seed) -> the answers by TEST/PROTOCOL


def primary_contrasts(
    comparisons: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]], answers: AnswersOf
) -> list[dict[str, Any]]:
    """The judged primary contrasts, for result.json.

    comparisons: of the report's section, resolved. rows: the table's rows by label, and by stage where no label is so called.
    answers: of one run, {} where it kept none; then the interval is over seeds alone, and a claim with a margin does not hold.
    Each has what `compare` says, with interval and p over seeds and images where both rows' metric is an accuracy, and: claim, margin,
    resampled (what the interval is over), images, p, adjusted (Holm), of (how many), holds, seeds_needed (`level_among` so many, by the
    spread between seeds alone), error_removed (`_error_removed`).
    """
    primary = [entry for entry in comparisons if entry["primary"]]
    found = [
        _contrast(one, [rows[name] for name in (one["a"], one["b"], *one.get("beyond", ()))], answers, len(primary))
        for one in primary
    ]
    for one, adjusted in zip(found, holm([one["p"] for one in found]), strict=True):
        one |= {"adjusted": adjusted, "of": len(found), "holds": one.pop("inside") and adjusted < LARGEST_P}
    return found


def _contrast(
    entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], answers: AnswersOf, count: int
) -> dict[str, Any]:
    """rows: a and b; with `beyond`, four. count: of the table's primary contrasts."""
    a, b, *beyond = rows
    found = compare(a, b, entry["label"], beyond)
    seeds, values = found["seeds"], found["values"]
    pairs = _by_image(rows, seeds, answers)
    note = pairs if isinstance(pairs, str) else ""
    images, p_of = 0, (lambda null: student_p(values, null))
    if not isinstance(pairs, str):
        both = nested(pairs, seed=_SEED)
        over = both.interval(seed=_SEED, span=difference_span(rows))
        found |= {"low": finite_or_none(over.low), "high": finite_or_none(over.high)}
        images, p_of = sum(len(one.values) for one in pairs[0]), _p_of(both)
    definition = definition_of(a["metric"])
    higher = definition is None or definition.better == "higher"
    claim, margin = entry["claim"], entry["margin"]
    bounds = (found["low"], found["high"])
    verdict = judge(claim, margin, found["mean"], bounds, p_of, higher)
    if not_by_images(margin, images):  # its bound is over images, too
        verdict, note = ContrastVerdict(1.0, False), f"{note}, so a claim with a margin cannot hold"
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
        "seeds_needed": seeds_needed(spread, room, level=level_among(count)) if len(values) > 1 and room > 0 else None,
        "note": note,
        "error_removed": None if beyond else _error_removed(b, seeds, values),
    }


def _error_removed(
    b: Mapping[str, Any], seeds: Sequence[int], differences: Sequence[float]
) -> dict[str, float | None] | None:
    """The share of row b's error, 1 - accuracy, that row a removes: mean, low, high by Fieller's theorem over paired seeds.

    None for metrics of which 1 is not the best value, and where b makes no error.
    """
    definition, value = definition_of(b["metric"]), dict(zip(b["seeds"], b["values"], strict=True))
    if definition is None or (definition.low, definition.high, definition.better) != (0.0, 1.0, "higher"):
        return None
    share, low, high = share_interval_of(differences, [1.0 - value[seed] for seed in seeds])
    return None if share is None else {"mean": share, "low": low, "high": high}


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


def difference_over_images(rows: Sequence[Mapping[str, Any]], answers: AnswersOf | None) -> tuple[float, float] | None:
    """The 95 % interval of a - b over their seeds and, within them, images; None where these cannot be paired, as without predictions.

    rows: a and b; or four, of which it is that of (a - b) - (c - d).
    """
    seeds = compare(rows[0], rows[1], "", rows[2:])["seeds"]
    pairs = "no predictions" if answers is None else _by_image(rows, seeds, answers)
    if isinstance(pairs, str):
        return None
    over = nested(pairs, seed=_SEED).interval(seed=_SEED, span=difference_span(rows))
    low, high = finite_or_none(over.low), finite_or_none(over.high)
    return None if low is None or high is None else (low, high)


def _p_of(found: Nested) -> Callable[[float], float]:
    return lambda null: found.p(null)


def student_p(values: Sequence[float], null: float = 0.0) -> float:
    """Two-sided p of "the mean is `null`" by Student's t over seeds alone; 1 for one seed, and for two equal ones."""
    if len(values) < 2:
        return 1.0
    away, spread = float(np.mean(values)) - null, float(np.std(values, ddof=1)) / len(values) ** 0.5
    if not spread:
        return 0.0 if away and len(values) >= FEWEST_SEEDS else 1.0
    return 2 * float(stdtr(len(values) - 1, -abs(away) / spread))


def _by_image(
    rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], answers: AnswersOf
) -> list[list[ImageScores]] | str:
    """The differences of right answers of rows a and b, less those of c and d if there are four: [S][T]; or in words why there are none."""
    keys = [row["metric"].rpartition("/")[0] for row in rows]
    if any(row["metric"].rpartition("/")[2] != "accuracy" for row in rows):
        return "only accuracies are paired image by image"
    stages = [stages_shown(row) for row in rows]
    if len({len(one) for one in stages}) > 1:
        return "the rows are means over different numbers of tasks"
    found = []
    for seed in seeds:
        tasks = []
        for names in zip(*stages, strict=True):
            differences = [_pair(names[i : i + 2], keys[i : i + 2], seed, answers) for i in range(0, len(rows), 2)]
            if isinstance(first := differences[0], str) or isinstance(last := differences[-1], str):
                return next(one for one in differences if isinstance(one, str))
            if len(rows) > 2 and not np.array_equal(first.drawn, last.drawn):
                return f"seed {seed}: {names[0]} and {names[2]} were tested on different images"
            tasks.append(paired_scores(first, last) if len(rows) > 2 else first)
        found.append(tasks)
    return found


def _pair(names: Sequence[str], keys: Sequence[str], seed: int, answers: AnswersOf) -> ImageScores | str:
    """The differences of right answers of two stages, images in the order of their keys; or why there are none."""
    sides = answers(names[0], seed), answers(names[1], seed)
    if any(key not in side for key, side in zip(keys, sides, strict=True)):
        return f"seed {seed} of {names[0]} or {names[1]} kept no predictions"
    pair = aligned(*sides, (keys[0], keys[1]))
    if isinstance(pair, str):
        return f"seed {seed}: {pair}"
    return paired_scores(*(ImageScores(one.correct, one.images.drawn) for one in pair))
