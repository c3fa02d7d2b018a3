"""The result of an attribution: effects, interactions and Shapley values of the cells' responses, for result.json and table.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.evaluate.counts import Floats
from ...core.evaluate.factorial import (
    Attributed,
    attributed,
    effect_weights,
    shapley_weights,
    share_interval_of,
)
from ...core.evaluate.looks import merged_looks
from ...core.evaluate.power import seeds_needed
from ...core.evaluate.statistics import holm
from ..report.claims import LARGEST_P, level_among
from ..report.contrasts import AnswersOf, student_p
from ..report.results import span_of
from ..report.tables import is_fraction
from .images import CellImages, effect_over_images, images_of
from .plan import TIMES, Attribution, effect_subsets, on_factors


def explained(
    plan: Attribution, rows: Sequence[Mapping[str, Any]], answers: AnswersOf = lambda stage, seed: {}
) -> dict[str, Any]:
    """The entries of result.json. rows: of the pipeline's table, one for each different response. answers: of the runs.

    Intervals of effects and Shapley values are over seeds and, where predictions were kept, test images within them; those of shares are
    over seeds. Raises UserError for other metrics than accuracies and their kin.
    """
    by_stage = {row["stage"]: row for row in rows}
    found = [by_stage[name] for name in plan.cells]
    metric = found[0]["metric"]
    if not all(is_fraction(metric, row["values"]) for row in found):
        raise UserError(f"metric: {metric} is no fraction, whose effects are points; name an accuracy, for example")
    responses = np.array([row["values"] for row in found], dtype=np.float64)
    runs = np.array([list(by_stage).index(name) for name in plan.cells])
    low, high = span_of(metric, responses.ravel().tolist())
    factors, span = plan.factors, (low - high, high - low)
    images = images_of(plan.cells, metric, found[0]["seeds"], answers)
    whole = np.zeros(len(plan.cells))
    whole[0], whole[-1] = -1.0, 1.0
    *parts, total = (
        effect_over_images(attributed(weights, responses, runs, span), weights, images, span)[0]
        for weights in (*(shapley_weights(len(factors), i) for i in range(len(factors))), whole)
    )
    return {
        "metric": metric,
        "seeds": found[0]["seeds"],
        "kind": sorted({row["kind"] for row in found}),
        "selection": sorted({word for row in found for word in row["selection"]}),
        "looks": merged_looks(row.get("looks") or {} for row in found),
        "factors": {name: plan.config["factors"][name]["label"] or name for name in factors},
        "cells": [
            {
                "on": on_factors(cell, factors),
                **{key: row[key] for key in ("stage", "n", "mean", "low", "high", "values")},
                **({"priors": row["priors"]} if row.get("priors") else {}),
            }
            for cell, row in enumerate(found)
        ],
        "runs": len(by_stage) * len(found[0]["seeds"]),
        "resampled": "seeds" if images is None else "seeds and images",
        "effects": _effects(plan, responses, runs, span, images),
        "shapley": [
            {"factor": name, **_entry(part), **_share(part, total)} for name, part in zip(factors, parts, strict=True)
        ],
        "total": _entry(total),
    }


def _effects(
    plan: Attribution, responses: Floats, runs: Any, span: tuple[float, float], images: Sequence[CellImages] | None
) -> list[dict[str, Any]]:
    factors, effects = plan.factors, list[dict[str, Any]]()
    for subset in effect_subsets(factors):
        mask = sum(1 << factors.index(name) for name in subset)
        weights = effect_weights(len(factors), mask)
        found, p = effect_over_images(attributed(weights, responses, runs, span), weights, images, span)
        spread = float(np.std(found.values, ddof=1)) if len(found.values) > 1 else 0.0
        name = TIMES.join(subset)
        level = level_among(len(plan.config["primary"]) if name in plan.config["primary"] else 1)
        effects.append(
            {
                "name": name,
                "factors": list(subset),
                "primary": name in plan.config["primary"],
                **_entry(found),
                "p": student_p(found.values) if p is None else p,
                "seeds_needed": seeds_needed(spread, found.mean, level=level) if len(found.values) > 1 else None,
            }
        )
    primary = [one for one in effects if one["primary"]]
    for one, adjusted in zip(primary, holm([one["p"] for one in primary]), strict=True):
        outside = one["low"] is not None and (one["low"] > 0 or one["high"] < 0)
        one |= {"adjusted": adjusted, "of": len(primary), "holds": outside and adjusted < LARGEST_P}
    return effects


def _entry(found: Attributed) -> dict[str, Any]:
    n, ratio = len(found.values), found.variance_ratio
    return {
        "n": n,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "values": list(found.values),
        "variance_ratio": ratio,
        # Unpaired runs would need n times the ratio for the same interval; less than none where pairing does harm.
        "seeds_saved": None if ratio is None else round(n * (ratio - 1)),
    }


def _share(part: Attributed, total: Attributed) -> dict[str, Any]:
    share, low, high = share_interval_of(part.values, total.values)
    return {"share": share, "share_low": low, "share_high": high}
