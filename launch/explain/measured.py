"""What is measured of each kind of map: the sanity check, both curves, the pointing game; as numbers for result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.evaluate.counts import Bools
from ...core.evaluate.statistics import Interval
from ...core.model.classifier import Classifier
from ...finetune.explain.curves import CURVE_STEPS, Curves, curves_of, mean_intervals, random_curves
from ...finetune.explain.gradients import Logits
from ...finetune.explain.methods import Explainer, PicturesSeen, at_side
from ...finetune.explain.pointing import Pointed, PointingGame, point_at, pointing_game
from ...finetune.explain.randomised import THRESHOLD, SanityCheck, sanity_check

# Places of the maps that are drawn at random, beside which areas are seen: as coarse as those of Grad-CAM usually are.
RANDOM_GRID = (7, 7)


class Measures(NamedTuple):
    """Of one kind of map; None for what was not measured. points: by the picture's row."""

    sanity: SanityCheck | None
    curves: dict[str, Any] | None
    game: PointingGame | None
    points: Mapping[int, Pointed]


def interval_as_json(found: Interval, n: int) -> dict[str, Any]:
    """mean, 95 % interval and n."""
    return {"mean": found.estimate, "low": found.low, "high": found.high, "method": found.method, "n": n}


def measured_sanity(explainer: Explainer, shown: PicturesSeen, seed: int, batch: int) -> SanityCheck:
    """Of pictures whose maps are not constant."""

    # Random networks need no complete attributions, which may take 30 times as long.
    settings = replace(explainer.settings, most_steps=explainer.settings.first_steps)

    def make(classifier: Classifier) -> Explainer:
        return Explainer(explainer.name, classifier, settings)

    return sanity_check(make, explainer.classifier, shown, seed, batch)


def curves_at_random(model: Logits, shown: PicturesSeen, seed: int, batch: int) -> Curves | None:
    """Both curves of each picture when its places come in random order; None without pictures."""
    parts = [slice(start, start + batch) for start in range(0, len(shown.images), batch)]
    found = [random_curves(model, shown.rows(part), RANDOM_GRID, seed) for part in parts]
    return joined_curves(found) if found else None


def joined_curves(parts: Sequence[Curves]) -> Curves:
    """The curves of all pictures."""
    return Curves(*(torch.cat(some) for some in zip(*parts, strict=True)))


def measured_curves(
    model: Logits, shown: PicturesSeen, maps: Tensor, chance: Curves, seed: int, batch: int
) -> dict[str, Any]:
    """Mean areas of both curves with intervals, those of random order, and what the map gains over it, picture by picture.

    maps: [N, h, w]; chance: `curves_at_random` of the same pictures. Also the mean curves, for the page.
    """
    parts = [slice(start, start + batch) for start in range(0, len(maps), batch)]
    own = joined_curves([curves_of(model, shown.rows(part), maps[part], seed) for part in parts])
    told: dict[str, Any] = {"steps": CURVE_STEPS}
    for name, sign in (("insertion", 1.0), ("deletion", -1.0)):
        mine, others = own.areas()[name], chance.areas()[name]
        values = {"area": mine, "random": others, "gain": sign * (mine - others)}
        found = mean_intervals(values, shown.units, seed)
        curve = getattr(own, name).mean(0)
        told[name] = {
            **{key: interval_as_json(one, len(mine)) for key, one in found.items()},
            "curve": [round(float(x), 6) for x in curve],
        }
    return told


def measured_points(
    maps: Tensor,
    rows: Sequence[int],
    shown: PicturesSeen,
    masks: Mapping[int, Bools],
    side: int,
    tolerance: float,
    seed: int,
) -> tuple[PointingGame | None, dict[int, Pointed]]:
    """The pointing game of the pictures with masks. maps: [N, h, w], of the pictures `rows`, which are those shown.

    A constant map points at a place that is drawn, so leaving it out gains nothing.
    """
    points, own = dict[int, Pointed](), list[int]()
    for number, row in enumerate(rows):
        if row in masks:
            found = at_side(maps[number : number + 1].nan_to_num(0.0, 0.0, 0.0), side)[0]
            points[row] = point_at(found, masks[row], int(shown.keys[number]), seed, tolerance)
            own.append(number)
    if not own:
        return None, points
    return pointing_game(list(points.values()), shown.units[own], seed), points


def sanity_as_json(found: SanityCheck) -> dict[str, Any]:
    """Mean rank correlation at each level, None where all maps are constant, and the verdict; `refused` says why there is none."""
    levels = [
        {
            "lost": level.what,
            "rank_correlation": level.interval
            and interval_as_json(level.interval, len(level.correlations) - level.constant),
            "constant": level.constant,
        }
        for level in found.levels
    ]
    verdict = {"passed": found.passed, "refused": found.refused or None}
    return {"levels": levels, "unchanged": found.unchanged, "threshold": THRESHOLD, **verdict}


def game_as_json(found: PointingGame, tolerance: float) -> dict[str, Any]:
    """Shares with intervals, and the tolerance in pixels."""
    told = {key: interval_as_json(getattr(found, key), found.n) for key in found._fields if key != "n"}
    return {**told, "tolerance": tolerance, "better_than_chance": found.better_than_chance}
