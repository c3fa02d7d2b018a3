"""Evaluation during fine-tuning, on a slice of the training images that is held out from training; early stopping and the best state by it.

What is decided is a function of the evaluations so far, which metrics.jsonl holds, and of nothing else, so that a resumed run decides the
same. The best state's weights lie in RUN/checkpoints/kept/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ...core import phase
from ...core.config.duration import Duration
from ...core.digested import read_digested, write_digested
from ...core.distributed import broadcast_text
from ...core.errors import UserError
from ...core.evaluate.features import extract
from ...core.evaluate.held_out import CHOICE_FRACTION, held_out_rows, nothing_to_choose_on
from ...core.images.images import Images
from ...core.manifest import DamagedFile
from ...core.run.directory import Run
from ...core.views.view import Evaluation

NAME, FOLDER = "held_out", "kept"


def slice_options(
    *,
    held_out: float = 0.0,
    every: Duration | None = None,
    keep: Literal["last", "best"] = "last",
    by: Literal["accuracy", "loss"] = "accuracy",
    early_stopping: int | None = None,
) -> None:
    """The `evaluate` section of `rootstock finetune`: a slice of the training images, held out by content, that training is judged by.

    held_out: Part of the training images of each class that is held out for it, 0 (none) to 0.5; copies and groups stay on one side.
    every: How often the classifier is scored on the slice: steps, `1ep` or `10%`; null: after the last step alone.
    keep: Which state is exported and tested: the last, or the best on the slice.
    by: What best means: the highest accuracy on the slice, or the lowest cross-entropy; of equals the earliest.
    early_stopping: Evaluations without a better one after which training stops, 1 or more; null: it goes on to the end.
    """


def check_evaluation(options: Mapping[str, Any]) -> None:
    """Raises UserError for numbers out of their range, and for choices without a slice to make them on."""
    fraction, patience = options["held_out"], options["early_stopping"]
    if not 0.0 <= fraction <= 0.5:
        raise UserError(
            f"evaluate.held_out: expected a number from 0 to 0.5, got {fraction}; {CHOICE_FRACTION} is usual"
        )
    if patience is not None and patience < 1:
        raise UserError(f"evaluate.early_stopping: expected a number of evaluations, 1 or more, got {patience}")
    wants = {
        "every": options["every"] is not None,
        "keep": options["keep"] == "best",
        "early_stopping": patience is not None,
    }
    for key in (key for key, wanted in wants.items() if wanted and not fraction):
        raise UserError(
            f"evaluate.{key}: {options[key]} needs images that training does not see; give evaluate.held_out too, such as {CHOICE_FRACTION}"
        )
    for key in ("keep", "early_stopping"):
        if wants[key] and not wants["every"]:
            raise UserError(
                f"evaluate.{key}: {options[key]} needs evaluations during training; give evaluate.every too, such as 1ep"
            )


def hold_out(train: Images, options: Mapping[str, Any], seed: int) -> tuple[Images, Images | None]:
    """(what is trained on, the slice). Raises UserError where there is nothing to hold out."""
    if not options["held_out"]:
        return train, None
    assert train.labels is not None
    if nothing_to_choose_on(train.units(), train.labels):
        raise UserError(
            f"evaluate.held_out: no class of {train.uri} has two different images, so none can be held out; leave evaluate out"
        )
    rows = held_out_rows(train.units(), train.labels, seed=seed, fraction=options["held_out"])
    return train.select((~rows).nonzero()[:, 0]), train.select(rows.nonzero()[:, 0])


class Judged(NamedTuple):
    """One evaluation."""

    step: int
    accuracy: float
    loss: float

    def better(self, other: Judged, by: str) -> bool:
        """Whether this one is better than an earlier one."""
        return self.loss < other.loss if by == "loss" else self.accuracy > other.accuracy


class HeldOutEvaluation:
    """The evaluator of `fit`, and its decisions. Its methods are called on every process alike.

    images: the slice. Where the method has an averaged network, that one is judged, and its own is logged beside it as `raw_`.
    """

    def __init__(self, run: Run, options: Mapping[str, Any], images: Images, view: Evaluation) -> None:
        self.run, self.options, self.images, self.view = run, options, images, view
        self.folder = run.checkpoints / FOLDER
        self.seen: dict[int, Judged] | None = None  # by step; None until the rows are read
        self.logits: Tensor | None = None  # of the last evaluation

    def __call__(self, method: Any) -> dict[str, float]:
        """Score a state, and store its weights if it is the best one so far and the best is kept."""
        network = method.judged
        step, found = phase.NOW.step, self.score(network)
        earlier = self._until(step - 1)
        now = Judged(step, *found)
        if self.options["keep"] == "best" and all(now.better(other, self.options["by"]) for other in earlier):
            self._store(network, step)
        assert self.seen is not None
        self.seen[step] = now
        own = {"accuracy": now.accuracy, "loss": now.loss}
        if network is not method.classifier:
            accuracy, loss = self.score(method.classifier)
            own |= {"raw_accuracy": accuracy, "raw_loss": loss}
        return own

    def logits_of(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """(logits [N, K], labels int64 [N]) of the slice, each image once, on the CPU."""
        workers = self.run.options["workers"]
        logits = extract(network, self.images, self.view, device=self.run.device, workers=workers)
        assert self.images.labels is not None
        return logits, self.images.labels.cpu()

    def score(self, network: nn.Module) -> tuple[float, float]:
        """Accuracy and cross-entropy on the slice."""
        self.logits, labels = self.logits_of(network)
        right = (self.logits.argmax(1) == labels).double().mean()
        return float(right), float(F.cross_entropy(self.logits.double(), labels))

    def enough(self, done: int) -> bool:
        """Whether training stops after `done` steps, since the last evaluations brought nothing better."""
        patience, seen = self.options["early_stopping"], self._until(done)
        if patience is None or not seen:
            return False
        place = seen.index(self._best(seen))
        return len(seen) - 1 - place >= patience

    def kept(self, done: int) -> Judged | None:
        """The best evaluation until then; None where the last state is kept."""
        seen = self._until(done)
        return self._best(seen) if seen and self.options["keep"] == "best" else None

    @property
    def chooses(self) -> bool:
        """Whether the state that is exported depends on the slice."""
        return self.options["keep"] == "best" or self.options["early_stopping"] is not None

    def weights_of(self, step: int) -> dict[str, Tensor]:
        """The weights of the best state. Raises UserError if their file is lost or damaged."""
        broadcast_text("")  # rank 0 has written it
        try:
            return read_digested(best_path(self.folder, step))
        except DamagedFile as error:
            raise UserError(
                f"{error}; it holds the weights of the best evaluation, so choose another run.dir to train again"
            ) from error

    def as_result(self, done: int, kept: int, steps: int) -> dict[str, Any]:
        """The entry `evaluations` of a result. done: steps that were made. kept: after which the exported state was there."""
        rows = [judged._asdict() for judged in self._until(done)]
        stopped = {"stopped_early": done} if done < steps else {}
        return {"kept": kept, "keep": self.options["keep"], "by": self.options["by"], **stopped, "seen": rows}

    def _best(self, seen: list[Judged]) -> Judged:
        best = seen[0]
        for judged in seen[1:]:
            best = judged if judged.better(best, self.options["by"]) else best
        return best

    def _until(self, step: int) -> list[Judged]:
        """The evaluations up to a step, in order: of this command, and before them of metrics.jsonl, which resuming has cut."""
        if self.seen is None:
            rows = self.run.rows() if self.run.main else []
            key = f"{NAME}/accuracy"
            found = [[row["step"], row[key], row[f"{NAME}/loss"]] for row in rows if key in row]
            told: list[list[Any]] = json.loads(broadcast_text(json.dumps(found)))
            self.seen = {row[0]: Judged(*row) for row in told}
        return [judged for at, judged in sorted(self.seen.items()) if at <= step]

    def _store(self, network: nn.Module, step: int) -> None:
        """Write the weights, and then delete those of states that were the best before."""
        if not self.run.main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_digested(best_path(self.folder, step), network.state_dict())
        for other in self.folder.glob("best-*.safetensors"):
            if other != best_path(self.folder, step):
                other.unlink(missing_ok=True)


def best_path(folder: Path, step: int) -> Path:
    """Where the weights of a state lie."""
    return folder / f"best-{step:08d}.safetensors"
