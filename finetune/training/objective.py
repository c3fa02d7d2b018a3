"""What fine-tuning minimises: the loss on labelled images, with what holds the weights back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from ...core.checks import check_share
from ...core.errors import UserError
from ...core.method import Labelled, Method, Step
from ...core.model.backbone import Backbone
from ...core.model.classifier import Classifier
from ...core.model.drop_path import draw_paths, keyed_drop_paths
from ...core.numerics import wide
from ...core.stage import Feed
from ...core.stream.resampled import class_power
from ...core.train.optim import Optim, parameter_groups
from .averages import Averaging
from .losses import ClassLoss
from .partial import check_trained
from .penalties import SoftThreshold, StartingPoint, check_penalties
from .posthoc import check_posthoc


class FineTune(Method):
    """A loss on labelled images, by default cross-entropy, and what holds the weights back."""

    rows_per_position = 1
    couples_samples = False
    shrink: SoftThreshold | None = None  # after each update

    def __init__(
        self,
        classifier: Classifier,
        criterion: ClassLoss,
        *,
        l2_sp: Mapping[str, Any] | None = None,
        masks: nn.Module | None = None,
        teaching: nn.Module | None = None,
    ) -> None:
        """l2_sp: keys of `method.l2_sp`; the classifier's weights and which of them are trained must be settled.

        masks: WeightMasks of weights that stay 0 (finetune/compress/masks.py). teaching: (images, logits, loss) -> the loss with what a
        teacher adds to it, and metrics; None: without a teacher.
        """
        super().__init__()
        self.classifier, self.criterion, self.teaching = classifier, criterion, teaching
        self.start = None if l2_sp is None else StartingPoint(classifier, **l2_sp)
        self.paths = keyed_drop_paths(classifier)
        self.averaging: Averaging | None = None
        self.masks: Any = masks

    @property
    def judged(self) -> nn.Module:
        """The network that evaluation during training is about: the average, where there is one that is complete at any time."""
        return self.classifier if self.averaging is None or self.averaging.recomputes else self.averaging.network

    @property
    def backbone(self) -> Backbone:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The classifier's backbone."""
        return self.classifier.backbone

    def forward(self, batch: Labelled, progress: float) -> Step:
        """batch.images: [N, C, h, w]. The training accuracy of mixed images, whose labels are [N, K], uses the dominant label."""
        draw_paths(self.paths, batch.draws)
        logits = self.classifier(batch.images)
        loss = self.criterion(wide(logits), batch.labels, progress)
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
        metrics = {"train_accuracy": (logits.argmax(1) == labels).float().mean()}
        if self.teaching is not None:
            loss, told = self.teaching(batch.images, logits, loss)
            metrics |= told
        if self.start is not None:
            penalty = self.start(self.classifier)
            loss, metrics = loss + penalty, {**metrics, "l2_sp": penalty.detach()}
        return Step(loss, metrics)

    def after_step(self, progress: float) -> None:
        """The proximal step of L1, the weights that stay 0, and then the average of the weights."""
        if self.shrink is not None:
            self.shrink(self, progress)
        if self.masks is not None:
            self.masks.apply_to(self.backbone.model)
        if self.averaging is not None:
            self.averaging.update(self.classifier, progress, self.skipped)

    def add_l1(self, l1: Mapping[str, Any] | None, optim: Optim, fed: Feed) -> None:
        """Shrink weights after each update, if the keys of `method.l1` ask for it."""
        if l1 is not None:
            # Numbers alone: a sharded training copies the method, and a feed cannot be copied.
            rate = partial(rate_at, optim, fed.steps, fed.steps_per_epoch)
            self.shrink = SoftThreshold(self, parameter_groups(self, optim), rate, **l1)


def rate_at(optim: Optim, steps: int, steps_per_epoch: int, progress: float) -> float:
    """The learning rate of the step at this progress."""
    return optim.rate(round(progress * steps), steps, steps_per_epoch)


def check_corrections(criterion: ClassLoss, sampler: str | float, method: Mapping[str, Any]) -> None:
    """Raises UserError where two keys correct for class sizes, and for a key that the head of the loss has no use for."""
    resampled = class_power(sampler) > 0.0
    if criterion.corrects and resampled:
        raise UserError(
            f"data.sampler: {sampler} would correct a second time for class sizes, as method.loss: {method['loss']['name']} does; "
            "leave one of both out"
        )
    check_posthoc(method["posthoc"], criterion, resampled)
    if criterion.head is None:
        return
    loss, how = method["loss"]["name"], method["head_init"]
    if method["linear_first"]:
        raise UserError(
            f"method.linear_first: a linear probe has no head such as method.loss: {loss} needs; leave one of both out"
        )
    if how != "torch":
        raise UserError(
            f"method.head_init: {how} is for a linear head, which method.loss: {loss} has not; give method.head_init: torch"
        )


def check_method(method: Mapping[str, Any], backbone: Mapping[str, Any], sharding: str) -> None:
    """Raises UserError for values out of their range, and for keys that contradict each other."""
    for key in ("label_smoothing", "dropout"):
        check_share(key, method[key])
    if method["head_std"] <= 0.0:
        raise UserError(f"method.head_std: expected more than 0, got {method['head_std']}; MAE has 2e-5")
    if method["head_init"] != "torch" and method["keep_head"]:
        raise UserError("method.head_init: method.keep_head keeps a trained head; leave one of both out")
    for key in ("ema", "swa", "wise_ft"):
        if method["l1"] is not None and method[key] is not None:
            raise UserError(f"method.l1: in an average of weights none is exactly 0; leave method.{key} or l1 out")
    check_trained(method["trained"], method["freeze"], backbone)
    check_penalties(method["l2_sp"], method["l1"], backbone["weights"], sharding)
