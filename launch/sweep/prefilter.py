"""A filter before the trials: many points are drawn, scored without training or after a few steps, and the best part begins the sweep.

The kept points are the parameters of the first trials, best first; the sampler goes on from what they measure. Nothing is drawn from a
generator and no queue is kept: trial k has the k-th kept point, so a worker that is killed loses none, and two workers agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core.errors import UserError
from .search_space import Space, Span

if TYPE_CHECKING:
    from .plan import Sweep
    from .point import Untrained

_TRIES = 50  # draws for each point, beyond which a small space has no other points


class ScoredPoint(NamedTuple):
    """A point before any trial. facts: its cost, its score, or `why` it cannot be built."""

    number: int
    params: Mapping[str, Any]
    facts: Mapping[str, Any]


def prefilter_options(*, of: int = 32, keep: float = 0.5, seed: int = 0) -> None:
    """The keys of `prefilter` that all names have.

    of: Number of different points that are drawn and scored.
    keep: Share that is tried of those that can be built and are within the budget, above 0 to 1: the best ones.
    seed: Seed of the points.
    """


def no_filter(sweep: Sweep, candidate: int, params: Mapping[str, Any], point: Untrained) -> float:
    """No points are drawn before the trials; the sampler alone chooses."""
    return 0.0


def by_synflow(sweep: Sweep, candidate: int, params: Mapping[str, Any], point: Untrained) -> float:
    """Score by SynFlow (Tanaka et al. 2020, arXiv:2006.05467; of networks Abdelfattah et al. 2021, arXiv:2101.08134), without pictures."""
    from .synflow import synflow_of

    return synflow_of(point)


def by_steps(sweep: Sweep, candidate: int, params: Mapping[str, Any], point: Untrained, *, steps: int = 50) -> float:
    """Score by the objective after a few steps of training.

    steps: Their number; schedules have the same shape as in a whole trial.
    """
    from .brief import score_after_steps

    return score_after_steps(sweep, candidate, params, steps)


PREFILTERS: Mapping[str, Callable[..., float]] = {"none": no_filter, "synflow": by_synflow, "steps": by_steps}


def check_prefilter(section: Mapping[str, Any], sampler: str, problems: list[str]) -> None:
    """Add the mistakes of the resolved `prefilter` section to `problems`."""
    if section["of"] < 1:
        problems.append(f"prefilter.of: expected 1 or more, got {section['of']}")
    if not 0 < section["keep"] <= 1:
        problems.append(f"prefilter.keep: expected a share above 0 and at most 1, got {section['keep']}")
    if section.get("steps", 1) < 1:
        problems.append(f"prefilter.steps: expected 1 or more, got {section['steps']}")
    if sampler == "grid" and section["name"] != "none":
        problems.append("prefilter: a grid tries its points in order; leave prefilter out, or take another sampler")


def drawn_points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """So many different points, fewer where the space has fewer; each is a function of the seed and its number."""
    found: dict[str, dict[str, Any]] = {}
    for params in _draws(space, count * _TRIES, seed):
        found.setdefault(json.dumps(params, sort_keys=True), params)
        if len(found) == count:
            break
    return list(found.values())


def _draws(space: Space, count: int, seed: int) -> Iterator[dict[str, Any]]:
    import torch

    from ...core.draws import Draws

    for number in range(count):
        draws = Draws(seed, torch.tensor([number]), "prefilter/")
        yield {key: _value(span, draws.uniform(key).item()) for key, span in space.items()}


def _value(span: Span, share: float) -> Any:
    """The value at a share of the span, 0 to below 1; each choice and integer has an equal part of it."""
    if (points := span.points) is not None:
        return points[int(share * len(points))]
    low, high = span.values
    if span.kind == "log":
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return low + share * (high - low)


def kept_points(candidates: Sequence[ScoredPoint], sweep: Sweep) -> list[ScoredPoint]:
    """The best `keep` of the candidates that can be built and are within the budget, best first. Raises UserError if there is none."""
    cost, built = sweep.cost, [candidate for candidate in candidates if "why" not in candidate.facts]
    if not built:
        raise UserError(
            f"prefilter: none of {len(candidates)} points can be built and scored: {candidates[0].facts['why']}; "
            "change search, and choose another run.dir"
        )
    within = [one for one in built if cost is None or cost.excess(one.facts["cost"]) <= 0]
    if not within:
        assert cost is not None and cost.budget is not None
        least = min(one.facts["cost"] for one in built)
        raise UserError(
            f"cost.budget: {cost.budget:g} is below the {cost.name} of all {len(built)} points that were drawn (the least: {least:g}); "
            "raise it, or search smaller networks, and choose another run.dir"
        )
    most = math.ceil(sweep.config["prefilter"]["keep"] * len(within))
    return sorted(within, key=lambda one: (-one.facts["score"], one.number))[:most]
