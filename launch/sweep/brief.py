"""Brief trainings, whose objective scores a point before its trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...core.errors import UserError

if TYPE_CHECKING:
    from .plan import Sweep


def score_after_steps(sweep: Sweep, number: int, params: Mapping[str, Any], steps: int) -> float:
    """The objective after so many steps of each stage that trains, higher is better. Raises UserError as the training would."""
    from ..pipeline.run import run_pipeline
    from ..verbs import execute, resolve

    folder = sweep.dir / "candidates" / f"candidate-{number:04d}"
    overrides = sweep.shortened(params, steps, folder)
    if sweep.verb == "run":
        run_pipeline(sweep.file, overrides, execute, resolve)
    else:
        execute(sweep.verb, sweep.file, overrides, quiet=True)
    value = sweep.objective.of(folder)
    if value != value:
        raise UserError(f"{sweep.objective.name} is not a number after {steps} steps")
    return value if sweep.maximize else -value
