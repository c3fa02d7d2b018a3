"""Which images an objective is measured on, so that nobody tunes on a test set by accident.

Tuning on a part that the recipe holds out of the training data is fair. A set that the config names as a test set is refused
until the user says with `selection` how the result was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...core.config.messages import among
from ...core.errors import UserError
from ...core.model.backbone import LOOKED
from ..report.records import read_run
from ..report.results import value_of

# The objective of each verb where the file gives none.
DEFAULT = {
    "pretrain": "test/knn/accuracy",
    "probe": "test/knn/accuracy",
    "finetune": "test/classifier/accuracy",
    "adapt": "source/classifier/accuracy",
}
WATCHED = "watch/"  # prefix of the measures of pretraining that need no labels; taken on training images


class Objective(NamedTuple):
    """What a sweep tunes.

    stage: stage of a pipeline that measures it; empty for a single run.
    name: metric of result.json, or a column `watch/...` of metrics.jsonl.
    """

    stage: str
    name: str

    def of(self, trial: Path) -> float:
        """Its value in the folder of a finished trial; the mean over the seeds of a pipeline. Raises UserError if it was not measured."""
        runs = sorted(trial.glob(f"seed-*/{self.stage}")) if self.stage else [trial]
        values = [self._of_run(run) for run in runs]
        return sum(values) / len(values)

    def _of_run(self, run: Path) -> float:
        record = read_run(run)
        if not self.name.startswith(WATCHED):
            return value_of(record.result, self.name)
        for row in reversed(record.rows):
            if self.name in row:
                return float(row[self.name])
        known = sorted({key for row in record.rows for key in row if key.startswith(WATCHED)})
        raise UserError(f"{run} has no {self.name}{among(self.name, known)}")


def read_objective(given: str | None, verb: str, stages: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Objective:
    """The objective of the file. stages: (verb, resolved config) by name, "" for a single run. Raises UserError for an unknown stage."""
    if verb != "run":
        return Objective("", given or DEFAULT[verb])
    stage, _, name = (given or "").partition("/")
    if stage not in stages or not name:
        wrong = (
            f"no stage {stage}{among(stage, stages)}" if name else f"expected STAGE/METRIC, got {given or 'nothing'}"
        )
        raise UserError(f"objective: {wrong}; for this pipeline it is for example {list(stages)[-1]}/test/knn/accuracy")
    return Objective(stage, name)


def selection_word(objective: Objective, verb: str, config: Mapping[str, Any], given: str | None) -> str:
    """The word of `selection` that describes tuning by this objective.

    verb, config: of the run that measures it. given: `selection` of the sweep's file. Raises UserError if nothing measures the
    objective, or if it is measured on a named test set or uses labels of a target and `given` does not admit that.
    """
    name = objective.name
    if name.startswith(WATCHED):
        if verb != "pretrain" or config["evaluate"]["watch"] is None:
            raise UserError(
                f"objective: {name} is measured only by pretraining with evaluate.watch: {{}}; choose another objective"
            )
        return _agreed(name.removeprefix(WATCHED), given, name)
    key = "evaluate.test" if verb == "pretrain" else "data.test"
    if verb == "pretrain" and config["evaluate"]["knn"] is None and config["evaluate"]["linear"] is None:
        raise UserError(
            f"objective: {name} is not measured by this pretraining; set evaluate.knn: {{}}, tune a pipeline with a probe (verb: run), or "
            "use a measure without labels such as watch/rankme"
        )
    section, _, last = key.partition(".")
    tests = config[section][last]
    test = name.partition("/")[0]
    held_out = ["source", "target"] if verb == "adapt" else ["test"]
    known = held_out if tests is None else ["test"] if isinstance(tests, str) else list(tests)
    if test not in known:
        raise UserError(f"objective: {name} names no set that is measured{among(test, known)}")
    prefix = f"stages.{objective.stage}." if objective.stage else ""
    if tests is not None:
        if given is not None:
            return given
        part = "held-out labelled images of the source" if verb == "adapt" else "a held-out part of the training data"
        raise UserError(
            f"objective: {name} is measured on a set that {prefix}{key} names, and a test set that was used for tuning tests nothing; add "
            f"set: {{{prefix}{key}: null}} to tune on {part}, or give selection: (train-split where that set was cut from the training "
            "data, source-val, tuned-on-target or oracle)"
        )
    if verb != "adapt":
        return _agreed("train-split", given, name)
    if test == "source":
        return _agreed("source-val", given, name)
    if given not in LOOKED:
        raise UserError(
            f"objective: {name} uses labels of the target; take source/classifier/accuracy, or give selection: tuned-on-target"
        )
    return given


def _agreed(word: str, given: str | None, name: str) -> str:
    """The given word if it admits that labels of the target or of a test set were used, otherwise `word`."""
    if given is None or given in LOOKED:
        return given or word
    if given != word:
        raise UserError(f"selection: {given} does not describe a choice by {name}; leave it out ({word})")
    return word


def stricter_selection(word: str, stages: Mapping[str, tuple[str, Mapping[str, Any]]]) -> str:
    """The word, or that of a stage whose own config admits that labels of the target or of a test set were used."""
    own = [config["data"].get("selection") for _, config in stages.values()]
    return next((looked for looked in own if looked in LOOKED), word) if word not in LOOKED else word
