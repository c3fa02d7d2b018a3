"""Which candidate each validator picks, what the default rule picks, and what a pick costs against the oracle: pure functions.

They read arrays, so stored runs can be scored again without their networks. Accuracies on the target enter only `regrets`, after all picks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .candidate import CandidateModel
from .contract import Validator
from .registry import VALIDATORS
from .source_validation import SourceValidation

# The default rule: how far below the best candidate's accuracy on held-out source, and below source-only's, a candidate may be.
WITHIN_BEST, BELOW_SOURCE_ONLY = 0.02, 0.05
Then = Literal["im", "ensv"]


class Scoring(NamedTuple):
    """The scores of candidates by validators."""

    names: tuple[str, ...]  # of the candidates
    scores: dict[str, list[float]]  # by validator, in the candidates' order; larger is better
    left_out: dict[str, str]  # why a validator gave none


class RuleChoice(NamedTuple):
    """What the default rule picked."""

    picked: int  # number of the candidate
    kept: tuple[int, ...]  # candidates that passed the filter
    rule: str  # in words


class Regret(NamedTuple):
    """What a pick costs. accuracy, oracle: on the target; regret = oracle - accuracy, 0 or more."""

    accuracy: float
    oracle: float
    regret: float


def score_candidates(candidates: Sequence[CandidateModel], validators: Mapping[str, Validator] = VALIDATORS) -> Scoring:
    """All scores that the evidence allows. A validator that needs what some candidate lacks is left out, with the reason in words."""
    scores: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    for name, validator in validators.items():
        if lacking := validator.lacks(candidates):
            left_out[name] = f"needs {', '.join(_MEANING[need] for need in lacking)}"
        else:
            scores[name] = validator.scores(candidates)
    return Scoring(tuple(candidate.name for candidate in candidates), scores, left_out)


_MEANING = {
    "target": "outputs on the target",
    "source": "held-out source images",
    "trained": "features of training source images",
    "weight": "the weights of a linear head",
    "mixed": "a network that can be shown mixed images",
}


def pick(scores: Sequence[float]) -> int | None:
    """The candidate with the largest score, of equal ones the last; None if no score is a finite number."""
    finite = [(score, index) for index, score in enumerate(scores) if math.isfinite(score)]
    return max(finite)[1] if finite else None


def picks(scoring: Scoring) -> dict[str, int]:
    """What each validator picks, by its name; without those whose scores are undefined for all candidates."""
    found = {name: pick(scores) for name, scores in scoring.scores.items()}
    return {name: index for name, index in found.items() if index is not None}


def choose(scoring: Scoring, *, then: Then = "im", source_only: float | None = None) -> RuleChoice:
    """The default rule: a filter by source validation, then information maximisation (or EnsV) among those that are left.

    A candidate passes if its accuracy on held-out source is within 2 points of the best one's, and not more than 5 points below
    source-only's (`source_only`, on the same images), where that is known. The filter keeps IM from candidates that have forgotten the
    task, and IM, unlike entropy and SND, sees a collapse on the target. Without held-out source there is no filter. If no candidate is as
    good as source-only - 5 points, those within 2 points of the best pass. Raises ValueError without a candidate.
    """
    if not scoring.names:
        raise ValueError("there is no candidate to choose from")
    kept, words = range(len(scoring.names)), "no filter, since there is no held-out source"
    if accuracies := scoring.scores.get(SourceValidation.name):
        best = max(accuracies)
        near = [i for i, accuracy in enumerate(accuracies) if accuracy >= best - WITHIN_BEST - 1e-9]
        above = [i for i in near if source_only is None or accuracies[i] >= source_only - BELOW_SOURCE_ONLY - 1e-9]
        kept, words = above or near, "within 2 points of the best source validation"
        if source_only is not None:
            words += " and not 5 points below source-only" if above else "; none is within 5 points of source-only"
    chosen = pick([scoring.scores[then][i] for i in kept])
    index = kept[len(kept) - 1 if chosen is None else chosen]
    return RuleChoice(index, tuple(kept), f"{words}, then {then}")


def regrets(picked: Mapping[str, int], accuracies: Sequence[float]) -> dict[str, Regret]:
    """What each pick costs against the best candidate. accuracies: of the candidates on the target, after its labels were opened."""
    oracle = max(accuracies)
    return {name: Regret(accuracies[i], oracle, oracle - accuracies[i]) for name, i in picked.items()}


def add_regrets(told: dict[str, Any], outcome: Mapping[str, Any]) -> None:
    """Add to the entry of a result what the picks cost on each test, after the labels were opened: `regret`; nothing for one candidate.

    told: of `as_result`, with `selected` where another than the last candidate may be exported. outcome: `states`, accuracies of the other
    candidates by test, and `metrics` of the exported one.
    """
    exported = told.get("selected", told["candidates"][-1])
    others = [name for name in told["candidates"] if name != exported]
    regret = {}
    for test, found in outcome.get("states", {}).items():
        if not found.keys() >= set(others):
            continue  # what could not be read is named in the log
        known = {**found, exported: outcome["metrics"][f"{test}/classifier/accuracy"]}
        accuracies = [known[name] for name in told["candidates"]]
        picked = {**told["picks"], "rule": told["rule"]["pick"]}
        costs = regrets({name: told["candidates"].index(chosen) for name, chosen in picked.items()}, accuracies)
        regret[test] = {
            "accuracies": accuracies,
            "oracle": max(accuracies),
            "by": {name: {"accuracy": cost.accuracy, "regret": cost.regret} for name, cost in costs.items()},
        }
    if regret:
        told["regret"] = regret


def as_result(scoring: Scoring, choice: RuleChoice) -> dict[str, Any]:
    """The entry of a result. A score that is no finite number becomes null."""
    return {
        "candidates": list(scoring.names),
        "scores": {name: [s if math.isfinite(s) else None for s in scores] for name, scores in scoring.scores.items()},
        "picks": {name: scoring.names[index] for name, index in picks(scoring).items()},
        "rule": {
            "pick": scoring.names[choice.picked],
            "kept": [scoring.names[i] for i in choice.kept],
            "how": choice.rule,
        },
        "left_out": scoring.left_out,
    }
