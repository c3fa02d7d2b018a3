"""What a primary contrast of a table claims, and whether the claim holds. Without numpy: configs are checked by it at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

MOST_PRIMARY = 4  # contrasts of a table
LARGEST_P = 0.05  # largest p, after Holm, of a claim that holds
ContrastClaim = Literal["differs", "loses at most", "equals"]


class ContrastVerdict(NamedTuple):
    """p: two-sided, of the claim's opposite, before Holm's method. inside: whether the whole 95 % interval lies where the claim says."""

    p: float
    inside: bool


def judge(
    claim: ContrastClaim,
    margin: float | None,
    mean: float,
    bounds: tuple[float | None, float | None],
    p_of: Callable[[float], float],
    higher_is_better: bool = True,
) -> ContrastVerdict:
    """Judge a - b. bounds: the 95 % interval of the difference, Nones if there is none. p_of(d): two-sided p of "the mean is d".

    "differs": the interval excludes 0. "loses at most": no bound is worse than `margin` (non-inferiority). "equals": both bounds lie
    within `margin` (equivalence; two one-sided tests, each by the 95 % interval, so stricter than the usual 90 %).
    """
    low, high = bounds
    if low is None or high is None:
        return ContrastVerdict(1.0, False)
    if claim == "differs":
        return ContrastVerdict(p_of(0.0), low > 0 or high < 0)
    assert margin is not None
    edges = [-margin, margin] if claim == "equals" else [-margin if higher_is_better else margin]
    inside = all(low > edge if edge < 0 else high < edge for edge in edges)
    beyond = any(mean <= edge if edge < 0 else mean >= edge for edge in edges)
    return ContrastVerdict(1.0 if beyond else max(p_of(edge) for edge in edges), inside)


def not_by_images(margin: float | None, images: int) -> bool:
    """Whether a claim with a margin cannot be judged: its bound has to be over images, too, and no images were paired."""
    return margin is not None and images == 0


def room_of(claim: ContrastClaim, margin: float | None, mean: float, higher_is_better: bool = True) -> float:
    """The distance that more seeds have to resolve: from 0, or from the margin; 0 or less where no number of seeds would show the claim."""
    if claim == "differs":
        return abs(mean)
    assert margin is not None
    return margin - abs(mean) if claim == "equals" else margin + (mean if higher_is_better else -mean)


def claim_words(contrast: Mapping[str, Any], unit: str, shown: Callable[[float], str]) -> str:
    """A judged contrast as one sentence. shown: a number with its sign, in `unit`."""
    a, b, margin = contrast["a"], contrast["b"], contrast["margin"]
    facts = [f"{shown(contrast['mean'])}{unit} as measured"]
    if contrast["low"] is not None:
        facts.append(f"95 % interval [{shown(contrast['low'])}, {shown(contrast['high'])}]")
        facts.append(f"p = {contrast['adjusted']:.2g} after Holm over {contrast['of']}")
    else:
        facts.append("no interval")
    limit = "" if margin is None else f"{shown(margin).lstrip('+')}{unit}"
    claims = {
        "differs": (f"{a} differs from {b}", f"no difference between {a} and {b} is shown"),
        "loses at most": (
            f"{a} loses at most {limit} against {b}",
            f"that {a} loses at most {limit} against {b} is not shown",
        ),
        "equals": (f"{a} equals {b} within {limit}", f"that {a} equals {b} within {limit} is not shown"),
    }
    return f"{claims[contrast['claim']][0 if contrast['holds'] else 1]} ({', '.join(facts)})"


def removed_words(contrast: Mapping[str, Any]) -> str:
    """Of a gain, the share of b's error that a removes, as one sentence; "" of a loss, and of metrics that have no error."""
    share = contrast.get("error_removed")
    if share is None or share["mean"] <= 0:
        return ""
    bounds = (
        "no interval"
        if share["low"] is None
        else f"95 % interval over seeds by Fieller's theorem [{100 * share['low']:.0f} %, {100 * share['high']:.0f} %]"
    )
    return f"{contrast['a']} removes {100 * share['mean']:.0f} % of the error of {contrast['b']} ({bounds})"


def needed_words(contrast: Mapping[str, Any]) -> str:
    """How many paired seeds the contrast asks for, in words."""
    n, needed, among = contrast["n"], contrast["seeds_needed"], contrast["of"]
    if not_by_images(contrast["margin"], contrast["images"]):
        return "no number of seeds shows it, since the bound has to be over images, too"
    if n < 2:
        return "one seed says nothing about the spread between seeds; run more"
    if needed is None:
        return "at the spread and the difference of these seeds, no affordable number of seeds would show it"
    edge = f"p < {LARGEST_P}" if among == 1 else f"p < {LARGEST_P} / {among}"
    of_what = f"at the difference of these {n} and by the spread between seeds alone"
    return f"{needed} paired seeds show it ({edge}) with 80 % probability, {of_what}"


def level_among(count: int) -> float:
    """The level of an interval that shows one of so many claims, whatever comes of the others: Bonferroni's, Holm's first step."""
    return 1.0 - LARGEST_P / count


def stages_shown(row: Mapping[str, Any]) -> list[str]:
    """The stages whose results a row shows: one, or several of which it shows the mean. row: of a config or of a result."""
    return row.get("stages") or [row["stage"]]


def tasks_words(tasks: Mapping[str, Any] | None) -> str:
    """ "12 tasks of 4 domains", for a row that is a mean over tasks; "" for others."""
    if not tasks:
        return ""
    words = f"mean over {tasks['n']} tasks"
    if not tasks["domains"]:
        return words
    shared = "; tasks share domains, so they are not independent, and n counts seeds" if tasks["shared"] else ""
    return f"{words} of {tasks['domains']} domain{'s' * (tasks['domains'] != 1)}{shared}"


def tasks_of(domains: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The entry `tasks` of a row. domains: those of each of its tasks, source and target; empty where they are not known."""
    known = [domain for pair in domains for domain in dict.fromkeys(pair)]
    different = len(set(known)) if all(domains) else 0
    return {"n": len(domains), "domains": different, "shared": different < len(known)}


def finite_or_none(value: float | None) -> float | None:
    """The number as JSON has it."""
    return None if value is None or not math.isfinite(value) else float(value)
