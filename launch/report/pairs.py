"""Two experiments compared image by image: differences with intervals, McNemar's test, and p adjusted for all comparisons of a page.

Runs are paired by seed, then by image. With one seed, the interval says how the difference would vary over test images; with several,
over test images and seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from ...core.evaluate.counts import Floats, class_counts, confusion_metrics, split_counts
from ...core.evaluate.definitions import DEFINITIONS
from ...core.evaluate.statistics import (
    Statistic,
    bootstrap_draws,
    bootstrap_intervals,
    bootstrap_p,
    cluster_numbers,
    holm,
    mcnemar,
    of_sums,
    seeds_and_images_interval,
    seeds_and_images_p,
)
from .answers import Answers, Seeds, aligned, why_no_answers
from .records import StageRuns
from .tables import number

MOST_PAIRS = 45  # more experiments are compared with the first only
SURE = 0.05  # largest adjusted p of a difference that is called shown
_SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class Paired:
    """The difference second - first of one metric.

    where: TEST/PROTOCOL, or both where they differ. seeds, images: how many pairs of runs, and of images in each. test: what p is of.
    adjusted: p by Holm's method. only: images that only the first, only the second, has right, for accuracy with one seed.
    """

    first: str
    second: str
    where: str
    metric: str
    seeds: int
    images: int
    mean: float
    low: float | None
    high: float | None
    test: str
    p: float
    adjusted: float = 1.0
    only: tuple[int, int] | None = None
    note: str = ""

    @property
    def scale(self) -> float:
        return 100.0 if DEFINITIONS[self.metric].percent else 1.0

    @property
    def difference(self) -> str:
        return self.shown(self.mean)

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"[{self.shown(self.low)}, {self.shown(self.high)}]"

    def shown(self, value: float) -> str:
        """With its sign: percentage points with one digit after the point, other units with three."""
        return number(value, 100.0, sign=True) if self.scale == 100 else f"{value:+.3f}".replace("-", "−")

    @property
    def p_words(self) -> str:
        return p_text(self.p)

    @property
    def adjusted_words(self) -> str:
        return p_text(self.adjusted)

    @property
    def sentence(self) -> str:
        """The comparison in plain words."""
        unit = " points" if self.scale == 100 else ""
        amount = f"{self.shown(abs(self.mean))[1:]}{unit} {'higher' if self.mean > 0 else 'lower'}"
        of = f"{self.images} images" + (f" over {self.seeds} seeds" if self.seeds > 1 else "")
        facts = f"95 % interval {self.interval}, " if self.interval else ""
        facts += f"p = {p_text(self.adjusted)} after Holm".replace("= <", "< ")
        head = f"{self.where}, {self.metric.replace('_', ' ')}: "
        if self.adjusted < SURE:
            better = (self.mean > 0) == (DEFINITIONS[self.metric].better == "higher")
            verdict = f"that of {self.second} is {amount} than that of {self.first} on {of}, which is {'better' if better else 'worse'}"
        else:
            verdict = f"no difference between {self.second} and {self.first} is shown on {of} ({amount} as measured)"
        only = (
            f"; {self.only[1]} images only {self.second} has right, {self.only[0]} only {self.first}"
            if self.only
            else ""
        )
        alone = (
            " One seed each says nothing about another training."
            if self.seeds == 1 and self.metric == "accuracy"
            else ""
        )
        return f"{head}{verdict} ({facts}{only}).{alone}{f' {self.note}' if self.note else ''}"


@dataclass(frozen=True)
class Pairs:
    """lines: the comparisons. notes: sentences on what could not be paired, and why."""

    lines: list[Paired]
    notes: list[str]


def p_text(p: float) -> str:
    """Three digits after the point, or the power of ten of a small p; exact numbers end where rounding begins."""
    return f"{p:.3f}" if p >= 0.0005 else f"{p:.0e}".replace("e-0", "e-") if p >= 1e-16 else "<1e-16"


def pair_stages(stages: Sequence[StageRuns], answers: Sequence[Seeds]) -> Pairs:
    """All pairs of experiments; beyond 45 pairs, each with the first alone. Nothing if no experiment has predictions.

    answers: of each experiment (`answers_of`).
    """
    notes, kept = list[str](), list[tuple[str, Seeds]]()
    for stage, found in zip(stages, answers, strict=True):
        if found:
            kept.append((stage.name, found))
        elif len(stages) > 1 and (why := why_no_answers(stage, others=any(answers))):
            notes.append(f"{stage.name} {why}")
    pairs = list(combinations(kept, 2))
    if len(pairs) > MOST_PAIRS:
        pairs = [(kept[0], other) for other in kept[1:]]
        notes.append(f"there are {len(kept)} experiments, so each is compared with {kept[0][0]} alone")
    lines = list[Paired]()
    for first, second in pairs:
        for keys in _shared_keys(first[1], second[1]):
            found = compare_images(first, second, keys)
            if isinstance(found, str):
                notes.append(found)
            else:
                lines += found
    return Pairs(adjust(lines), list(dict.fromkeys(notes)))


def adjust(lines: Sequence[Paired]) -> list[Paired]:
    """The comparisons with p adjusted for their number."""
    return [replace(line, adjusted=p) for line, p in zip(lines, holm([line.p for line in lines]), strict=True)]


def _shared_keys(first: Seeds, second: Seeds) -> Iterator[tuple[str, str]]:
    """TEST/PROTOCOL of both; where they share no protocol of a test, the first protocol of each on it."""
    a, b = ({key: None for run in seeds.values() for key in run} for seeds in (first, second))
    for test in dict.fromkeys(key.partition("/")[0] for key in a):
        own, other = ([key for key in keys if key.partition("/")[0] == test] for keys in (a, b))
        both = [key for key in own if key in other]
        yield from ((key, key) for key in both)
        if not both and other:
            yield own[0], other[0]


def compare_images(first: tuple[str, Seeds], second: tuple[str, Seeds], keys: tuple[str, str]) -> list[Paired] | str:
    """The differences of accuracy, macro F1 and NLL, second - first; or a sentence on why there are none.

    first, second: name and answers. keys: the TEST/PROTOCOL of each.
    """
    (a, of_a), (b, of_b) = first, second
    where = keys[0] if keys[0] == keys[1] else f"{keys[1]} − {keys[0]}"
    seeds = [(seed, seed) for seed in of_a if seed in of_b and keys[0] in of_a[seed] and keys[1] in of_b[seed]]
    note = ""
    if not seeds and len(of_a) == len(of_b) == 1:
        (one,), (other,) = of_a, of_b
        seeds, note = [(one, other)], f"Their training seeds differ: {one} and {other}."
    if not seeds:
        return f"{where}: {a} and {b} share no seed with predictions, so they are not paired"
    pairs = list[tuple[Answers, Answers]]()
    for one, other in seeds:
        pair = aligned(of_a[one], of_b[other], keys)
        if isinstance(pair, str):
            of_seed = f" (seed {one})" if len(seeds) > 1 else ""
            return f"{where}: {a} and {b}{of_seed} are not paired: {pair}"
        pairs.append(pair)
    line = Paired(a, b, where, "", len(pairs), len(pairs[0][0].correct), 0.0, None, None, "", 1.0, note=note)
    return _differences(pairs, line)


def _metrics(pairs: Sequence[tuple[Answers, Answers]]) -> list[str]:
    sides = [side for pair in pairs for side in pair]
    found = ["accuracy"]
    if all(side.predictions is not None for side in sides):
        found.append("f1")
    if all(side.nll is not None for side in sides):
        found.append("nll")
    return found


def _differences(pairs: Sequence[tuple[Answers, Answers]], line: Paired) -> list[Paired]:
    """The line with the numbers of each metric, all from the same draws.

    Drawn are the pictures of all seeds together: one that several seeds were tested on is drawn for all of them, and is one cluster.
    """
    metrics = _metrics(pairs)
    statistics = [_statistic(pair, metrics) for pair in pairs]
    owned = [np.unique(a.images.drawn) for a, _ in pairs]
    every = np.unique(np.concatenate(owned))
    clusters, places = len(every), [np.searchsorted(every, own) for own in owned]

    def mean(weights: Floats) -> dict[str, Floats]:
        values = [statistic(weights[:, place]) for statistic, place in zip(statistics, places, strict=True)]
        return {metric: np.mean([value[metric] for value in values], axis=0) for metric in metrics}

    draws = bootstrap_draws(mean, clusters, seed=_SEED)
    if len(pairs) == 1:
        found = bootstrap_intervals(statistics[0], clusters, seed=_SEED, draws=draws)
        lines = [
            replace(line, metric=metric, mean=i.estimate, low=i.low, high=i.high)
            for metric, i in ((metric, found[metric]) for metric in metrics)
        ]
        return [_tested(one, *pairs[0], draws[one.metric], clusters) for one in lines]
    each = [statistic(np.ones((1, len(own)))) for statistic, own in zip(statistics, owned, strict=True)]
    return [
        _over_seeds(
            replace(line, metric=metric), [float(values[metric][0]) for values in each], draws[metric], clusters
        )
        for metric in metrics
    ]


def _over_seeds(line: Paired, values: Sequence[float], draws: Floats, clusters: int) -> Paired:
    """The line of several seeds with its numbers. values: the difference of each seed."""
    low, high = DEFINITIONS[line.metric].low, DEFINITIONS[line.metric].high
    both = seeds_and_images_interval(values, draws, seed=_SEED, span=(low - high, high - low))
    p = seeds_and_images_p(values, draws, clusters)
    return replace(line, mean=both.estimate, low=both.low, high=both.high, test="bootstrap", p=p)


def _tested(line: Paired, a: Answers, b: Answers, draws: Floats, clusters: int) -> Paired:
    """The line of one pair of runs with its p: McNemar's for accuracy, if every image was drawn by itself; else from the bootstrap."""
    p = bootstrap_p(draws, line.mean, clusters)
    if line.metric != "accuracy" or a.predictions is None or b.predictions is None:
        return replace(line, test="bootstrap", p=p)
    only_a, only_b, exact = mcnemar(a.correct > 0, b.correct > 0)
    if clusters == line.images:
        return replace(line, test="McNemar", p=exact, only=(only_a, only_b))
    origin = f"Its {line.images} images come from {clusters} pictures"
    note = f"{origin}, so p is from a bootstrap of pictures (McNemar's would be {p_text(exact)})."
    return replace(line, test="bootstrap", p=p, only=(only_a, only_b), note=f"{note} {line.note}".strip())


def _statistic(pair: tuple[Answers, Answers], metrics: Sequence[str]) -> Statistic:
    """The differences b - a of the metrics as a function of the clusters' weights; NaN where all weights are 0."""
    a, b = pair
    member, clusters = cluster_numbers(a.images.drawn)
    gaps = {"accuracy": b.correct - a.correct}
    if "nll" in metrics:
        gaps["nll"] = _nll(b) - _nll(a)
    columns = [np.bincount(member, gap) for gap in gaps.values()]
    sums = np.stack([*columns, np.bincount(member)], axis=1)
    means = of_sums(sums, lambda s: {name: _ratio(s[:, i], s[:, -1]) for i, name in enumerate(gaps)})
    sides = list[Statistic]()
    for side in (a, b) if "f1" in metrics else ():
        assert side.predictions is not None
        counts = class_counts(a.images.labels, side.predictions, member, clusters, len(a.images.classes))
        sides.append(of_sums(counts, lambda sums: {"f1": confusion_metrics(split_counts(sums))["f1"]}))

    def statistic(weights: Floats) -> dict[str, Floats]:
        found = dict(means(weights))
        if sides:
            gap = sides[1](weights)["f1"] - sides[0](weights)["f1"]
            found["f1"] = np.where(np.isfinite(found["accuracy"]), gap, np.nan)
        return {metric: found[metric] for metric in metrics}

    return statistic


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below; NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _nll(answers: Answers) -> Floats:
    assert answers.nll is not None
    return answers.nll
