"""What an objective looks at, so that tuning never looks at a test set unnoticed.

Where a recipe holds a part of its training data out by itself, tuning on that part is honest; a set that the config names as a test
is refused, until the user says what the result then is (`selection`, see DESIGN section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...core.config.messages import among
from ...core.errors import UserError
from ...core.model.backbone import LOOKED
from ..report.records import read
from ..report.results import value_of

# What each verb is tuned by where the config does not say.
DEFAULT = {
    "pretrain": "test/knn/accuracy",
    "probe": "test/knn/accuracy",
    "finetune": "test/classifier/accuracy",
    "adapt": "source/classifier/accuracy",
}
WATCHED = "watch/"  # of pretraining: measures that need no label, of training images


class Objective(NamedTuple):
    """stage: of a pipeline; empty for one run. name: a metric of its result, or a column `watch/...` of metrics.jsonl."""

    stage: str
    name: str

    def of(self, trial: Path) -> float:
        """Its value in a finished trial's folder: of a pipeline, the mean over seeds. Raises UserError where it was not measured."""
        runs = sorted(trial.glob(f"seed-*/{self.stage}")) if self.stage else [trial]
        values = [self._of(run) for run in runs]
        return sum(values) / len(values)

    def _of(self, run: Path) -> float:
        record = read(run)
        if not self.name.startswith(WATCHED):
            return value_of(record.result, self.name)
        for row in reversed(record.rows):
            if self.name in row:
                return float(row[self.name])
        known = sorted({key for row in record.rows for key in row if key.startswith(WATCHED)})
        raise UserError(f"{run} has no {self.name}{among(self.name, known)}")


def read_objective(given: str | None, verb: str, stages: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Objective:
    """stages: verb and resolved config of each stage by name; of one run, "". Raises UserError for a stage that is not there."""
    if verb != "run":
        return Objective("", given or DEFAULT[verb])
    stage, _, name = (given or "").partition("/")
    if stage not in stages or not name:
        said = f"no stage {stage}{among(stage, stages)}" if name else f"expected STAGE/METRIC, got {given or 'nothing'}"
        raise UserError(f"objective: {said}; of a pipeline it is for example {list(stages)[-1]}/test/knn/accuracy")
    return Objective(stage, name)


def chosen_by(objective: Objective, verb: str, config: Mapping[str, Any], said: str | None) -> str:
    """The word of `selection` for what is tuned by this objective.

    verb, config: of the run that measures it. said: the sweep's own word. Raises UserError where the objective is on a named test set or
    on labels of a target and the user has not said so, and where no such set is measured.
    """
    name = objective.name
    if name.startswith(WATCHED):
        if verb != "pretrain" or config["evaluate"]["watch"] is None:
            raise UserError(
                f"objective: {name} is measured by pretraining alone, with evaluate.watch: {{}}; name another"
            )
        return _agreeing(name.removeprefix(WATCHED), said, name)
    key = "evaluate.test" if verb == "pretrain" else "data.test"
    if verb == "pretrain" and config["evaluate"]["knn"] is None and config["evaluate"]["linear"] is None:
        raise UserError(
            f"objective: {name} is not measured by this pretraining; set evaluate.knn: {{}}, tune a pipeline with a probe (verb: run), or "
            "use a measure without labels such as watch/rankme"
        )
    section, _, last = key.partition(".")
    given = config[section][last]
    test = name.partition("/")[0]
    held_out = ["source", "target"] if verb == "adapt" else ["test"]
    known = held_out if given is None else ["test"] if isinstance(given, str) else list(given)
    if test not in known:
        raise UserError(f"objective: {name} is on no set that is measured{among(test, known)}")
    prefix = f"stages.{objective.stage}." if objective.stage else ""
    if given is not None:
        if said is not None:
            return said
        part = "held-out labelled images of the source" if verb == "adapt" else "a held-out part of the training data"
        raise UserError(
            f"objective: {name} is on a set that {prefix}{key} names, and what is tuned on a test set is no test of it any more; add "
            f"set: {{{prefix}{key}: null}} to tune on {part}, or say selection: (train-split where that set was cut from the training "
            "data, source-val, tuned-on-target or oracle)"
        )
    if verb != "adapt":
        return _agreeing("train-split", said, name)
    if test == "source":
        return _agreeing("source-val", said, name)
    if said not in LOOKED:
        raise UserError(
            f"objective: {name} looks at labels of the target; use source/classifier/accuracy, or say selection: tuned-on-target"
        )
    return said


def _agreeing(word: str, said: str | None, name: str) -> str:
    """The word, or a user's that admits to more."""
    if said is None or said in LOOKED:
        return said or word
    if said != word:
        raise UserError(f"selection: {said} is not how {name} chooses; leave it out ({word})")
    return word


def admitted(word: str, stages: Mapping[str, tuple[str, Mapping[str, Any]]]) -> str:
    """The word, unless the config of a stage says that it looked at more already."""
    own = [config["data"].get("selection") for _, config in stages.values()]
    return next((looked for looked in own if looked in LOOKED), word) if word not in LOOKED else word
