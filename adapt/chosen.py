"""Which state of a training is exported and tested: the last one, or the candidate that `evaluate.select` picks without a target label.

The weights of each candidate then lie beside its outputs, in RUN/candidates/step-N-weights.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..core.config.messages import among
from ..core.digested import read_digested, write_digested
from ..core.errors import UserError
from ..core.manifest import DamagedFile
from .validators.registry import VALIDATORS
from .validators.selection import RuleChoice, Scoring, pick

LAST, RULE = "last", "rule"


def check_select(options: Mapping[str, Any], sharding: str) -> None:
    """Raises UserError for a choice that could not be made. options: of `evaluate`. sharding: `run.sharding`."""
    select = options["select"]
    if select not in (LAST, RULE, *VALIDATORS):
        raise UserError(f"evaluate.select: no such validator: {select}{among(select, [LAST, RULE, *VALIDATORS])}")
    if select == LAST:
        return
    if options["every"] is None:
        raise UserError(
            "evaluate.select: the last state is the only candidate; add evaluate.every=25%, which keeps four states"
        )
    if sharding != "none":
        raise UserError(
            "evaluate.select: the weights of a sharded network are not kept in between; use run.sharding=none"
        )
    needs = VALIDATORS[select].needs if select in VALIDATORS else ()
    for part, key in (("source", "held_out=0.1"), ("mixed", "mixval=true")):
        if part in needs and not options[key.partition("=")[0]]:
            raise UserError(f"evaluate.select: {select} needs evaluate.{key}; add it, or use another validator")


def weights_path(folder: Path, step: int) -> Path:
    """Where the weights of a candidate lie. folder: RUN/candidates."""
    return folder / f"step-{step:08d}-weights.safetensors"


def keep_weights(folder: Path, step: int, classifier: nn.Module) -> None:
    """Write the weights and statistics of a candidate."""
    write_digested(weights_path(folder, step), classifier.state_dict())


def load_weights(folder: Path, step: int, classifier: nn.Module) -> None:
    """Give the classifier those of a candidate. Raises UserError if they cannot be read."""
    try:
        classifier.load_state_dict(read_digested(weights_path(folder, step)))
    except DamagedFile as error:
        raise UserError(
            f"evaluate.select: {error}; restore it, or delete the run's last checkpoints so that the training goes on before this step"
        ) from None


def chosen(select: str, scoring: Scoring, choice: RuleChoice, say: Callable[[str], None]) -> int:
    """The number of the candidate that is exported; the last one, which is then said, where the validator has no finite score."""
    if select == RULE:
        return choice.picked
    found = pick(scoring.scores[select]) if select in scoring.scores else None
    if found is None:
        why = scoring.left_out.get(select, "no candidate has a finite score")
        say(f"WARNING: evaluate.select: {select} picks none of the candidates ({why}); the last state is exported")
        return len(scoring.names) - 1
    return found


def selection_of(own: str, evaluate: Mapping[str, Any] | None, measured: Mapping[str, Any]) -> str:
    """`selection` of a result: as `data.selection` says, or what chose the state. measured: the entries of `Examination.conclude`."""
    validators = measured.get("validators", {})
    if evaluate is None or own != LAST or validators.get("selected") in (None, validators["candidates"][-1]):
        return own
    return str(evaluate["select"])
