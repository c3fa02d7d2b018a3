"""The primary contrasts of a pipeline, written down before its first run: contrasts.json in its folder, never changed afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.ledger import utc_now
from ...core.manifest import DamagedFile, own_digest, read_record, write_record
from ...core.run.folder import RESULT
from ..report.claims import stages_shown
from .checks import rows_named
from .plan import StageJob

DECLARED = "contrasts.json"


def declared_contrasts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the primary contrasts of a resolved report section compare, and claim; without the texts that people may polish."""

    def side(name: str) -> dict[str, Any]:
        (row,) = rows_named(report["rows"], name)
        return {"stages": stages_shown(row), "metric": row["metric"]}

    return [
        {
            "a": side(one["a"]),
            "b": side(one["b"]),
            **({"beyond": [side(name) for name in one["beyond"]]} if one["beyond"] else {}),
            "claim": one["claim"],
            "margin": one["margin"],
        }
        for one in report["comparisons"]
        if one["primary"]
    ]


def declare(folder: Path, now: Sequence[Mapping[str, Any]], jobs: Sequence[StageJob]) -> dict[str, Any] | None:
    """Write the primary contrasts down, if they are not yet; returns what result.json says of them, None for a table that never had any.

    now: those of the config. jobs: all runs of the table.
    {"digest": of the contrasts, "declared": when, "note": how they were changed after the first run, or declared after it; "" if not}
    Raises UserError if what was declared cannot be read.
    """
    digest, path = own_digest({"contrasts": list(now)}), folder / DECLARED
    finished = sum((job.dir / RESULT).exists() for job in jobs)
    try:
        first = read_record(path)
    except FileNotFoundError:
        if not now:
            return None
        first = {
            "digest": digest,
            "declared": utc_now(),
            "finished": finished,
            "runs": len(jobs),
            "contrasts": list(now),
        }
        write_record(path, first, shared=True)
    except DamagedFile as error:
        raise UserError(
            f"{error}; restore it, or delete it: then the table says that its contrasts were declared after {finished} runs"
        ) from None
    notes = []
    if first.get("finished"):
        notes.append(f"declared when {first['finished']} of {first.get('runs')} runs were finished")
    if first.get("digest") != digest:
        notes.append(
            f"changed after the first run: {str(first.get('digest'))[:12]} was declared, and these are {digest[:12]}"
        )
    return {"digest": digest, "declared": str(first.get("declared")), "note": "; ".join(notes)}
