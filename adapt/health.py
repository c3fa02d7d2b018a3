"""Whether a training went as its method needs it: what was logged at its beginning and end, and a sentence where its game was lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

RATIOS = ("gradient_ratio", "turn2/gradient_ratio")
HEALTH_METRICS = (
    "domain_accuracy",
    *RATIOS,
    "turn1/agreement",
    "source_agreement",
    "target_agreement",
    "unknown_target",
    "confident",
    "pseudo_changed",
    "effective_classes",
)
"""Metrics of methods by which a training's health is told."""

FEWEST_ROWS = 8  # logged rows, below which nothing is said
CHANCE, BEATEN = 0.55, 0.95  # accuracies of a discriminator: at most the one is chance, at least the other is victory
NEARLY_ALL, HARDLY_ANY = 0.99, 0.01


def health(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry `training` of a result's `diagnostics`.

    rows: of metrics.jsonl. Nothing is said of a control, whose features get no gradient of the other player, nor of a few rows.
    {"rows": how many were logged, "first" and "last": means over their first and last quarters by metric, "lost": a sentence or None}
    """
    logged = [row for row in rows if "loss" in row or "turn0/loss" in row]
    metrics = [name for name in HEALTH_METRICS if logged and all(_is_finite(row.get(name)) for row in logged)]
    quarter = -(-len(logged) // 4)
    first, last = (
        {name: math.fsum(row[name] for row in part) / len(part) for name in metrics}
        for part in (logged[:quarter], logged[len(logged) - quarter :])
    )
    most = {name: max((row[name] for row in logged), default=0.0) for name in metrics}
    control = any(most.get(name) == 0.0 for name in RATIOS)
    lost = lost_game(first, last, most) if len(logged) >= FEWEST_ROWS and not control else None
    return {"rows": len(logged), "first": first, "last": last, "lost": lost}


def lost_game(first: Mapping[str, float], last: Mapping[str, float], most: Mapping[str, float]) -> str | None:
    """Why the training of a method was in vain, by means over its first and last logged rows and the largest value; None if it was not."""
    if (accuracy := last.get("domain_accuracy")) is not None:
        if accuracy >= BEATEN:
            return (
                f"the discriminator won: at the end it tells source and target apart for {100 * accuracy:.0f} % of the images, "
                "so the features were not made alike"
            )
        if max(first["domain_accuracy"], accuracy) <= CHANCE:
            return (
                f"the discriminator was at chance from the start ({100 * first['domain_accuracy']:.0f} % of the images): it does not "
                "learn, or there was no difference between the domains to be seen; the features learned nothing of it"
            )
    if "turn1/agreement" in last and min(first["turn1/agreement"], last["turn1/agreement"]) >= NEARLY_ALL:
        return "both heads agreed on all target images from the start, so there was no disagreement for the features to reduce"
    if last.get("unknown_target", 0.0) >= NEARLY_ALL:
        return "at the end every target image is called unknown"
    if "confident" in most and most["confident"] <= HARDLY_ANY:
        return "hardly any target image ever reached the threshold of a pseudo-label, so the target taught nothing; lower method.threshold"
    return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
