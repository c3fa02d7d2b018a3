"""What surrounds the steps of a fine-tuning: the head that it starts from, evaluation meanwhile, and which weights are taken at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.features import extract
from ...core.evaluate.held_out import describe_slice
from ...core.evaluate.scores import Scored
from ...core.evaluate.trained import calibration_entry
from ...core.images.images import Images
from ...core.model.classifier import Classifier
from ...core.run.directory import Run
from ...core.train.fit import Evaluator, Training
from ...core.views.view import Evaluation
from .averages import Averaging, ExponentialAverage, interpolated
from .evaluation import NAME, HeldOutEvaluation, check_evaluation
from .linear_first import probe_head
from .posthoc import chooses_tau, chosen_tau, treat_head
from .statistics import recompute_statistics

RAW = "classifier-raw"  # the protocol by which weights are tested that are not averaged
FADED = 0.1  # part of an exponential average that the first step's weights may still have


class Regime(NamedTuple):
    """As `method` and `evaluate` ask for it. Its methods are called on every process alike."""

    run: Run
    method: Mapping[str, Any]
    classifier: Classifier
    averaging: Averaging | None
    evaluation: HeldOutEvaluation | None
    whole: Images  # the training images, those that are held out included
    train: Images
    view: Evaluation
    start: dict[str, Tensor]  # the weights before the first step, for wise_ft; on the CPU
    raw: dict[str, Tensor]  # those of the last step, where their exponential average is exported as it is; on the CPU

    @property
    def evaluators(self) -> dict[str, Evaluator]:
        """What looks at the slice during training."""
        return {} if self.evaluation is None else {NAME: self.evaluation}

    def begin(self) -> None:
        """Before the first step."""
        if self.method["linear_first"]:
            probe_head(self.run, self.classifier, self.train, self.view)
        if self.method["wise_ft"] is not None:
            state = self.classifier.state_dict()
            self.start.update({name: tensor.detach().cpu().clone() for name, tensor in state.items()})
        if isinstance(self.averaging, ExponentialAverage) and (left := self.averaging.left()) > FADED:
            self.run.log(
                f"WARNING: {left:.0%} of method.ema's average are still the first step's weights after {self.averaging.steps} steps; try "
                "ema.warmup: true, or a smaller decay"
            )
        if self.averaging is not None:
            self.averaging.restart(self.classifier)

    def enough(self, done: int) -> bool:
        """Whether training stops after so many steps."""
        return self.evaluation is not None and self.evaluation.enough(done)

    def conclude(self, plan: Training, done: int) -> dict[str, Any]:
        """Give the classifier the weights that are exported and tested, after `done` steps; returns entries of a result."""
        classifier, averaging, alpha = self.classifier, self.averaging, self.method["wise_ft"]
        if averaging is not None and done and not averaging.entries:
            self.run.log(
                "WARNING: nothing came into the average of the weights, because all steps at which something should have were skipped; "
                "the weights of the last step take its place"
            )
            averaging.restart(classifier)
        state = classifier.state_dict() if averaging is None else averaging.network.state_dict()
        kept = done
        if self.evaluation is not None and (best := self.evaluation.kept(done)) is not None:
            kept = best.step
            state = self.evaluation.weights_of(kept) if kept != done else state
        if isinstance(averaging, ExponentialAverage) and alpha is None and kept == done and done:
            self.raw.update({name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()})
        if alpha is not None:
            state = interpolated(self.start, {name: tensor.cpu() for name, tensor in state.items()}, alpha)
        classifier.load_state_dict(state)
        if alpha is not None or (averaging is not None and averaging.recomputes):
            recompute_statistics(classifier, plan, self.run)
        found = self._treated()
        if self.evaluation is not None:
            found |= self._told(plan, done, kept, self.evaluation)
        return found

    def score_raw(self, scored: Scored, tests: Mapping[str, Images]) -> None:
        """Score the weights of the last step beside their exponential average, as TEST/classifier-raw; nothing where that is not exported.

        The classifier has its weights again afterwards. scored: gets the scores.
        """
        if not self.raw:
            return
        classifier = self.classifier
        own = {name: tensor.detach().clone() for name, tensor in classifier.state_dict().items()}
        classifier.load_state_dict(self.raw)
        how: dict[str, Any] = {"device": self.run.device, "workers": self.run.options["workers"]}
        for name, images in tests.items():
            scored.add(f"{name}/{RAW}", images, extract(classifier, images, self.view, **how))
        classifier.load_state_dict(own)

    def _treated(self) -> dict[str, Any]:
        """Apply `method.posthoc`; returns the entry of a result that says which tau was chosen, if one was."""
        section, head = self.method["posthoc"], self.classifier.head
        told: dict[str, Any] = {}
        if chooses_tau(section):
            assert self.evaluation is not None and isinstance(head, nn.Linear)
            logits, labels = self.evaluation.logits_of(self.classifier)
            section = {**section, "tau": chosen_tau(head, logits, labels)}
            told = {"posthoc": {**section, "chosen": "held-out training images"}}
            self.run.log(f"method.posthoc: tau {section['tau']:g}, by balanced accuracy on held-out training images")
        assert self.train.labels is not None
        treat_head(section, head, self.train.labels.bincount(minlength=len(self.classifier.classes)))
        return told

    def _told(self, plan: Training, done: int, kept: int, evaluation: HeldOutEvaluation) -> dict[str, Any]:
        accuracy, loss = evaluation.score(self.classifier)
        logits, labels = evaluation.logits, evaluation.images.labels
        assert logits is not None and labels is not None
        self.run.log(
            f"held-out training images: accuracy {accuracy:.4f}, loss {loss:.4f}, of the state after step {kept}"
        )
        told = evaluation.as_result(done, kept, plan.steps)
        slice_of = describe_slice(self.whole, self.run.seed, evaluation.options["held_out"])
        slice_of["per_class"] = labels.bincount(minlength=len(self.classifier.classes)).tolist()
        sure = calibration_entry(logits, labels.cpu(), "held-out training images")
        return {"held_out": slice_of, "evaluations": {**told, "accuracy": accuracy, "loss": loss}, **sure}

    def selection(self, own: str) -> str:
        """How the exported state was selected: `own`, as the config says, or on a part of the training set."""
        chosen = self.evaluation is not None and (self.evaluation.chooses or chooses_tau(self.method["posthoc"]))
        return "train-split" if chosen and own == "last" else own


def check_regime(method: Mapping[str, Any], backbone: Mapping[str, Any], evaluate: Mapping[str, Any]) -> None:
    """Raises UserError for keys that contradict each other, and for numbers out of their range."""
    check_evaluation(evaluate)
    alpha = method["wise_ft"]
    if method["linear_first"]:
        for key, taken in (("keep_head", method["keep_head"]), ("head_init", method["head_init"] != "torch")):
            if taken:
                raise UserError(f"method.linear_first: the head is that of a linear probe; leave method.{key} out")
    if alpha is not None:
        if not 0.0 <= alpha <= 1.0:
            raise UserError(
                f"method.wise_ft: expected alpha, from 0 (the start) to 1 (the end), got {alpha}; 0.5 is usual"
            )
        if not method["linear_first"] and not method["keep_head"]:
            raise UserError(
                "method.wise_ft: the head of the start has to be a trained one, or nothing lies between start and end; give "
                "method.linear_first: true, or method.keep_head with a run that has a classifier"
            )
        if backbone["lora"] is not None:
            raise UserError("method.wise_ft: low-rank adapters have no such middle; leave backbone.lora or wise_ft out")
    if method["swa"] is not None:
        for key in ("keep", "early_stopping"):
            if evaluate[key] not in ("last", None):
                raise UserError(
                    f"evaluate.{key}: method.swa averages to the end of the training, so nothing is chosen before; leave one of both out"
                )
