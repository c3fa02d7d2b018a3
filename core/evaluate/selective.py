"""Accuracy where it matters: among the most confident images, and in the worst group; numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .counts import Bools, Floats, Ints

SMALL_GROUP = 20  # a group of fewer images is named as small


def risk_coverage(confidence: Floats, correct: Bools) -> tuple[Floats, Floats]:
    """(coverage, risk), [N] each: the error rate among the i most confident images, i = 1..N, and i / N (El-Yaniv & Wiener 2010).

    Among equally confident images the order is not known, so their errors are spread evenly.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered, wrong = confidence[order], (~correct[order]).astype(np.float64)
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(wrong)])
    spread = np.repeat(np.add.reduceat(wrong, starts) / sizes, sizes)
    taken = np.arange(1, len(wrong) + 1)
    return taken / len(wrong), np.cumsum(spread) / taken


def aurc(confidence: Floats, correct: Bools) -> float:
    """Area under the risk-coverage curve: the mean of its risks (Geifman & El-Yaniv 2017, arXiv:1705.08500). Lower is better."""
    return float(risk_coverage(confidence, correct)[1].mean())


def group_accuracies(correct: Bools, groups: Ints, names: Sequence[str]) -> dict[str, Any]:
    """{"worst", "mean": accuracies; "of": name of the worst; "groups": {name: {"accuracy", "images"}}; "small": names}.

    correct: bool [N]; groups: [N], indices into `names`; groups without images don't count. The worst is the smallest accuracy of any
    group; `small` names the groups of fewer than 20 images, where it may be chance. Of equal ones the worst is the first.
    """
    sizes = np.bincount(groups, minlength=len(names))
    right = np.bincount(groups, correct.astype(np.float64), minlength=len(names))
    found = {
        name: {"accuracy": float(r / n), "images": int(n)} for name, r, n in zip(names, right, sizes, strict=True) if n
    }
    worst = min(found, key=lambda name: found[name]["accuracy"])
    return {
        "worst": found[worst]["accuracy"],
        "mean": float(np.mean([group["accuracy"] for group in found.values()])),
        "of": worst,
        "groups": found,
        "small": [name for name, group in found.items() if group["images"] < SMALL_GROUP],
    }
