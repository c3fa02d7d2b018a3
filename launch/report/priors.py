"""How far apart the class priors of source and target are, in a table: estimated without labels of the target, and true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ESTIMATES = ("bbse", "mlls")
HEAD = "class priors apart: BBSE / MLLS / true"


def priors_of(stages: Sequence[Sequence[Mapping[str, Any]]], test: str) -> dict[str, float] | None:
    """The entry `priors` of a row: total variation by estimate and, of the test's labels, true; means over seeds and stages.

    stages: the results of each stage that the row shows, one a seed. None where one of them is no adaptation, or has no estimate.
    """
    found = dict[str, float]()
    for name in ESTIMATES:
        values = [_distance((result.get("label_shift") or {}).get(name)) for results in stages for result in results]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        found[name] = math.fsum(known) / len(known)
    true = [
        _distance(((result.get("label_shift") or {}).get("true") or {}).get(test)) for one in stages for result in one
    ]
    known = [value for value in true if value is not None]
    return found | ({"true": math.fsum(known) / len(known)} if known and len(known) == len(true) else {})


def _distance(entry: Any) -> float | None:
    value = entry.get("total_variation") if isinstance(entry, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def priors_cell(row: Mapping[str, Any]) -> str:
    """The distances for a column, such as "0.12 / 0.10 / 0.11"; "" for a row without."""
    found = row.get("priors")
    if not found:
        return ""
    return " / ".join(f"{found[name]:.2f}" if name in found else "–" for name in (*ESTIMATES, "true"))


def legends(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the notes of these rows mean, a sentence each: distances of class priors, and looks."""
    found = []
    if any(row.get("priors") for row in rows):
        found.append(
            "Class priors apart: the total variation between the class frequencies of source and target, 0 where they are equal and 1 "
            "where no class is in both; estimated without labels of the target by BBSE and by MLLS, then of the test's labels."
        )
    if any(row.get("looks") for row in rows):
        found.append(
            "Looks: how often the labels of a test set were looked at on this machine, this one included; whoever chooses by one look has "
            "no fresh test set for the next."
        )
    return found


def priors_words(row: Mapping[str, Any]) -> str:
    """The distances for a note; "" for a row without."""
    cell = priors_cell(row)
    return f"{HEAD} {cell}" if cell else ""
