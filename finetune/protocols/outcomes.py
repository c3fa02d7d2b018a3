"""What the result of a probe says about each protocol: the scores of each test, what was chosen, and how solvers ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.evaluate.held_out import describe_slice
from ...core.evaluate.scores import Scored
from ...core.images.images import Images
from ...core.launchlog import warn
from .contract import Features, Fitted, LabelledTest, Measuring


def add_outcome(
    scored: Scored, name: str, fitted: Fitted | Measuring, tests: Mapping[str, Images], shown: Mapping[str, Features]
) -> None:
    """Score or measure every labelled test by a fitted protocol. name: the protocol's; shown: the features of each test, by tap."""
    for test, images in tests.items():
        if images.labels is None:
            continue
        key = f"{test}/{name}"
        if isinstance(fitted, Measuring):
            given = LabelledTest(shown[test], images.labels.cpu(), images.keys(), scored.seed)
            scored.add_measured(key, fitted.measure(given))
            for metric, reason in scored.details[key].get("left_out", {}).items():
                warn(f"WARNING: {key}/{metric} is left out: {reason}")
        else:
            scored.add(key, images, fitted.scores(shown[test]), fitted.kind, held_out=fitted.held_out)
        scored.details[key] |= fitted.facts


def what_was_chosen(outcomes: Mapping[str, Fitted], train: Images, seed: int) -> dict[str, Any]:
    """What the protocols chose, how the slice of the training images was drawn on which they did, and how solvers ended."""
    chosen = {f"{name}/{key}": value for name, one in outcomes.items() for key, value in one.chosen.items()}
    fits = {name: dict(one.fit) for name, one in outcomes.items() if one.fit}
    tried = {name: list(map(dict, one.candidates)) for name, one in outcomes.items() if one.candidates}
    drawn = {"held_out": describe_slice(train, seed)} if chosen else {}
    return {
        "chosen": chosen, **drawn, **({"candidates": tried} if tried else {}), **({"fits": fits} if fits else {})
    }  # fmt: skip
