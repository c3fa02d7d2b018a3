"""What each label-free validator would have picked among a run's candidates, and what that pick costs, for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.evaluate.intervals import mean_interval
from .records import StageRuns
from .tables import number

_RULE = "rule"


@dataclass(frozen=True)
class ValidatorLine:
    """One validator: its picks ("step 60" or, over seeds, "step 60 (2), step 90 (1)"), accuracy and regret in per cent and points."""

    name: str
    picks: str
    accuracy: str
    regret: str
    interval: str = ""


@dataclass(frozen=True)
class ValidatorTable:
    """The validators of one experiment on one test, the smallest regret first. intervals: whether any line has one.

    The oracle is no line, since a best state by the test's labels belongs in no column beside last states and picks: the foot names it.
    """

    test: str
    lines: list[ValidatorLine]
    intervals: bool
    foot: list[str]


def validator_tables(stage: StageRuns) -> list[ValidatorTable]:
    """One table for each test on which the picks of all runs of an experiment were scored; none for runs of a single candidate."""
    told = [result["validators"] for result in stage.results if (result.get("validators") or {}).get("regret")]
    if not told:
        return []
    tests = [test for test in told[0]["regret"] if all(test in one["regret"] for one in told)]
    return [_table(test, told) for test in tests]


def _table(test: str, told: Sequence[Mapping[str, Any]]) -> ValidatorTable:
    """told: the entry `validators` of each seed's result."""
    scored = [one["regret"][test] for one in told]
    names = [name for name in scored[0]["by"] if all(name in one["by"] for one in scored)]
    costs = {name: [one["by"][name]["regret"] for one in scored] for name in names}
    lines = []
    for name in sorted(names, key=lambda name: sum(costs[name])):
        picks = [one["rule"]["pick"] if name == _RULE else one["picks"][name] for one in told]
        accuracies = [one["by"][name]["accuracy"] for one in scored]
        mean, low, high = mean_interval(costs[name], span=(0.0, 1.0))
        interval = "" if low is None or high is None else f"[{number(low)}, {number(high)}]"
        label = "default rule" if name == _RULE else name
        lines.append(ValidatorLine(label, _counted(picks), _mean(accuracies), number(float(mean)), interval))
    best = [one["candidates"][_first_largest(scores["accuracies"])] for one, scores in zip(told, scored, strict=True)]
    oracle = f"{_counted(best)}, {_mean([one['oracle'] for one in scored])} % on {test}"
    return ValidatorTable(test, lines, any(line.interval for line in lines), _foot(told, len(scored), oracle))


def _foot(told: Sequence[Mapping[str, Any]], seeds: int, oracle: str) -> list[str]:
    """oracle: its picks and its accuracy, in words."""
    first = told[0]
    reports = "The run reports its last state."
    if "selected" in first:
        reports = (
            f"The run reports the state that evaluate.select chose: {_counted([one['selected'] for one in told])}."
        )
    foot = [
        f"Candidates: the states after {', '.join(first['candidates'])}. {reports} A validator sees no label of the "
        "target, and what its pick costs is known only since the test's labels were opened, once, after all picks.",
        f"The regret is what is missing to the oracle, the best candidate by these labels, an upper bound and no result: {oracle}.",
        f"The default rule: {first['rule']['how']}.",
    ]
    if seeds > 1:
        foot.append(f"Means over {seeds} seeds, with 95 % t-intervals of the regret.")
    by_reason: dict[str, list[str]] = {}
    for name, why in (first.get("left_out") or {}).items():
        by_reason.setdefault(why, []).append(name)
    return foot + [f"Left out: {', '.join(names)} ({why})." for why, names in by_reason.items()]


def _counted(picks: Sequence[str]) -> str:
    found = Counter(picks).most_common()
    return ", ".join(name if len(picks) == 1 else f"{name} ({count})" for name, count in found)


def _mean(values: Sequence[float]) -> str:
    return number(sum(values) / len(values))


def _first_largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])
