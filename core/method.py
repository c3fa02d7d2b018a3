"""What a method gets and what it gives: the page to read before writing one.

A method is an `nn.Module` with a backbone. The recipe builds it, `fit` trains it: each step calls the method with one batch and
minimises `Step.loss`. The classes below list every attribute that recipes, the training loop, normalisation, the optimizer, the doctor
and the pictures read. An attribute without a value here is required: `register` (core/registration.py) refuses a class that leaves it
out. All others have the default that stands here.

This file imports no other part of Rootstock besides random draws, so a method's file loads in a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .draws import Draws
from .numerics import unless_skipped

if TYPE_CHECKING:
    from .config.duration import Duration
    from .model.backbone import Backbone
    from .model.classifier import Classifier

NO_INDEX = torch.empty(0, dtype=torch.int64)
"""The index of a batch that was not read from a set."""


class RawBatch(NamedTuple):
    """Images as the stream yields them, on the device, before augmentation."""

    images: Tensor  # uint8 or uint16 [N, C, H, W]; [N, V, C, h, w] where a loader process already cropped V views
    positions: Tensor  # int64 [N]: position of each image in the whole training, the key of all randomness
    labels: Tensor  # int64 [N]; empty where there are none, or where the method must not see them
    extra: Mapping[str, Tensor] = {}  # more that a loader process cropped: "local", uint8 or uint16 [N, L, C, s, s]
    # int64 [N]: the row of each image in its set, a function of seed and position.
    index: Tensor = NO_INDEX  # pyright: ignore[reportIncompatibleMethodOverride]


class RawPair(NamedTuple):
    """A raw batch of the labelled source and one of the target, whose labels are always empty."""

    source: RawBatch
    target: RawBatch


class Views(NamedTuple):
    """The batch of a pretraining method: V augmented views of the same N images, and L local crops of them if it takes any."""

    images: Tensor  # float [V, N, C, h, w], normalised; N is this process's share of the batch
    draws: Draws  # random numbers for these N images: the same on any number of processes, and after a resume
    local: Tensor | None = None  # float [L, N, C, s, s]


class Labelled(NamedTuple):
    """Augmented images with their labels."""

    images: Tensor  # float [N, C, h, w], normalised
    labels: Tensor  # int64 [N]; in fine-tuning with mixup or CutMix float [N, K], rows summing to 1
    draws: Draws
    more: tuple[Tensor, ...] = ()  # as in Unlabelled, by `AdaptMethod.source_views`


class Unlabelled(NamedTuple):
    """Augmented images without labels."""

    images: Tensor  # float [N, C, h, w], normalised
    draws: Draws
    # int64 [N]: the row of each image in the target, which lies in the order of its content.
    index: Tensor = NO_INDEX  # pyright: ignore[reportIncompatibleMethodOverride]
    # Further views of these images, each as `images`; `AdaptMethod.target_views` names them.
    more: tuple[Tensor, ...] = ()


class Domains(NamedTuple):
    """The batch of an adaptation method, without a source for an `online` one. No field is for a target's label, so none can leak."""

    sources: tuple[Labelled, ...]
    targets: tuple[Unlabelled, ...]

    @staticmethod
    def of(source: Labelled, target: Unlabelled) -> Domains:
        """One source and one target."""
        return Domains((source,), (target,))

    @property
    def source(self) -> Labelled:
        """The only source."""
        (only,) = self.sources
        return only

    @property
    def target(self) -> Unlabelled:
        """The only target."""
        (only,) = self.targets
        return only


class Overview(NamedTuple):
    """The whole target as the classifier in training sees it, in evaluation's view and mode: the same on all processes."""

    # int64 [M]: 0 to M - 1, the rows that `Unlabelled.index` names.
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    features: Tensor  # [M, D], as the head sees them
    logits: Tensor  # [M, K]


class Step(NamedTuple):
    """What a method returns for a batch."""

    # Scalar, float32, minimised: the mean over this process's images, the same loss of the whole batch computed on every process, or a sum
    # of both. The gradient is the mean over processes either way.
    loss: Tensor
    metrics: dict[str, Tensor]  # scalars, detached: averaged over processes, and written to metrics.jsonl at log steps
    # By image, [N, ...] each, detached; the loop hands them to `Method.keep` right after the forward: predictions of an online pass.
    kept: Mapping[str, Tensor] = {}


class Method(nn.Module):
    """What every method has, whichever recipe trains it.

    The constructor takes what the recipe gives it by position, `(backbone, chunk)` in pretraining and `(classifier, chunk)` in
    adaptation; its keyword-only parameters are the keys of the config's `method` section, each explained in the class docstring on a
    line of its own.
    """

    # Required. `backbone` (an attribute or a property) is what is trained, evaluated and exported; where there is a teacher that is
    # exported, it is the teacher.
    backbone: Backbone
    # Required. Rows that one image contributes to one forward of the backbone: 2 if two views are encoded together, 1 if one is.
    # Fixed groups of BatchNorm (`backbone.norm: group:G`) hold whole images by it.
    rows_per_position: int
    # Required. Whether the loss of an image depends on the other images of the batch (negatives, batch statistics of a head, an
    # entropy over the batch). Such a method sees the whole batch of all processes, so `run.accumulate` is refused for it.
    couples_samples: bool

    # Whether `forward` obeys `chunk`: the number of images that the encoder takes at once, of a batch that the loss sees as a whole
    # (`core.model.encode.encode`). Without it `run.chunk` is refused.
    takes_chunk: bool = False
    # Turns: updates on each batch, one after another, for players that alternate (`frozen` says who rests). The batch is prepared once;
    # a turn is a whole update with random draws of its own. Above 1, `forward` and `frozen` get the number of the turn as their last
    # argument, `run.accumulate` is refused, and metrics are logged as `turnN/NAME`. A non-finite turn ends its step.
    turns: int = 1
    # Adaptation: how often `refresh` is called: before step 0 and after each such duration. Epochs are the target's. None: never.
    refresh_every: Duration | None = None
    # Modules whose learning rate stays at its peak after the warm-up, whatever the schedule (SimSiam's predictor).
    constant_rate: tuple[nn.Module, ...] = ()
    # Lines for the run's log about this method as it was built, such as an approximation that its sizes made necessary.
    notes: tuple[str, ...] = ()
    # During `after_step`, set by the loop: bool scalar on the device, whether the step was skipped. None: it was not.
    skipped: Tensor | None = None

    # What `keep_after_step` was given.
    _kept: Mapping[str, Tensor] = {}

    def forward(self, batch: Any, progress: float) -> Step:
        """The loss of one batch. progress: completed part of the training, 0 to 1 (a scalar tensor where compiled).

        With `turns` above 1: `forward(batch, progress, turn)`, and `frozen(progress, turn)`. The parameters on which a turn's loss depends
        must be the same on all processes.

        Everything random comes from `batch.draws`, never from a generator, so that any number of processes and a resumed run compute
        the same.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a forward(batch, progress) that returns a Step")

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        """Parameters that rest in this step. Their gradient becomes None, so the optimizer neither moves nor decays them."""
        return ()

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """Takes `Step.kept` of each forward that has any. What must survive a resume goes into a buffer, the same on every process."""

    def watch(self, batch: Any, progress: float, turn: int = 0) -> Mapping[str, Tensor]:
        """Called at log steps only, after the backward pass, with its batch and weights: further metrics, too dear for every step.

        turn: 0 where there is one. It may change neither weights, buffers nor gradients: a run
        trains the same whatever it logs. Not called where the method is sharded.
        """
        return {}

    def after_step(self, progress: float) -> None:
        """Called after each step, its last turn: EMA teachers, queues. It writes what `keep_after_step` was given; call it from your own.

        It gets no batch: what it needs of one, `forward` keeps in an attribute. What must survive a resume is a buffer or a parameter.
        On a GPU it is also called after a skipped step, since the host does not know yet: where `skipped` is not None, all that it
        changes depends on it (`core.numerics.approach`), so that a skipped step changes nothing.
        """
        kept, self._kept = self._kept, {}
        for name, value in kept.items():
            buffer: Tensor = getattr(self, name)
            buffer.copy_(unless_skipped(torch.where(value.isfinite().all(), value, buffer), buffer, self.skipped))

    def keep_after_step(self, **values: Tensor) -> None:
        """For `forward`, whose step may yet be skipped: the next values of buffers by name, detached. What is not finite is not written."""
        self._kept = {**self._kept, **values}

    def refresh(self, seen: Overview, progress: float) -> None:
        """Called before the step, every `refresh_every`, in evaluation mode and without gradient.

        What it finds goes into buffers. A run that resumes at such a step calls it again, with the same weights and the same result.
        """


class PretrainMethod(Method):
    """A method of `rootstock pretrain`, built as `Class(backbone, chunk, **keys)`; its batch is `Views`."""

    # Required. How many whole views of each image are drawn: `batch.images` is [views, N, C, h, w].
    views: int

    # Whether the method uses local crops, `batch.local`. Without it `data.views.local` is refused.
    takes_local: bool = False
    # Whether the method learns from a trained network that the config names, so that what it learns is not from its images alone.
    takes_teacher: bool = False
    # Whether the method hides patches, so that the backbone has to be a ViT. `backbone.name: auto` asks it.
    hides_patches: bool = False

    def paint(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor] | None:
        """For the run's pictures: [N, C, H, W] normalised -> (what the method sees, what it predicts), both [N, C, H, W].

        None, the default, where a method predicts no pixels.
        """
        return None


class AdaptMethod(Method):
    """A method of `rootstock adapt`, built as `Class(classifier, chunk, **keys)`; its batch is `Domains`.

    The keys that all methods have (bottleneck, head, BatchNorm; adapt/objective.py) lie in the classifier. A method takes features only
    from `classifier.encode` and logits only from `classifier.head`.
    """

    # Required. The classifier of the source's classes that is trained, exported and tested.
    classifier: Classifier
    # Required. Whether the method uses target images. The result then counts them among the images seen without labels.
    sees_target: bool

    # Whether bottleneck and head of `backbone.weights` are kept instead of new ones.
    keeps_head: bool = False
    # Whether `forward` needs the pixels for more than `classifier.encode`. If not, and layers are frozen and views are not augmented,
    # `images` of a batch are what these layers give, computed once: features float [N, D] of a frozen backbone, maps float [N, ...] of its
    # first stages.
    uses_pixels: bool = False
    # The views of each image that `forward` takes of source and target: "weak" is `data.views` and comes as `images`; after it, in `more`,
    # any others: "strong" is `data.strong`. Each view has random draws of its own, so no view depends on which others there are.
    source_views: tuple[str, ...] = ("weak",)
    target_views: tuple[str, ...] = ("weak",)
    # Outputs of the head beyond the source's classes, after them: 1 where there is a class for what is unknown.
    extra_outputs: int = 0
    # Whether the method meets each target image once, in the order of `data.order` and as evaluation sees it, and predicts it by the
    # forward that adapts. Its batches hold no source, its last batch is filled up with the first images, and `predictions` is tested too.
    online: bool = False
    # The parts of the batch whose loss obeys `label_shift.resample`: "source" (adapt/parts/resampling.py, `source_error`), "target"
    # (`row_weights`, `target_weights`). Without any the key is refused.
    resamples: tuple[str, ...] = ()
    # The weights of images, adapt/parts/resampling.py: set by the recipe, None without `label_shift.resample`.
    resampling: Any
    # What an online method predicted for each target image, adapt/parts/online.py: set by the recipe, None for other methods.
    predictions: Any

    def __init__(self, *arguments: Any, **keys: Any) -> None:
        super().__init__(*arguments, **keys)
        self.resampling = self.predictions = None

    @property
    def backbone(self) -> Backbone:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The classifier's backbone."""
        return self.classifier.backbone

    def after_step(self, progress: float) -> None:
        """As of every method, and the frequencies of predicted classes."""
        super().after_step(progress)
        if self.resampling is not None:
            self.resampling.after_step(self.skipped)

    def make_room(self, targets: int) -> None:
        """Called once after the constructor: buffers with a row for each target image are made here. targets: how many there are."""

    def begin(self, source: Callable[[int, int], Iterable[Tensor]]) -> None:
        """Called once before the training, on every process, with the weights loaded and on the device.

        source: (count, batch size) -> that many source images, the same for every seed, in evaluation's view, as batches [n, C, h, w].
        """

    def conclude_source(self, source: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Called once after the last step, before `conclude`; images that it doesn't take are not read.

        source: the source's training images, each once, in evaluation's view, as batches of what the classifier takes (float [n, C, h, w],
        or features or maps of frozen layers) with their labels, int64 [n].
        """

    def conclude(self, target: Iterable[Tensor]) -> None:
        """Called once after the last step. target: every target image once, in evaluation's view, as batches float [n, C, h, w]."""


def needs_whole_batch(method: Method) -> bool:
    """Whether a step must see its batch at once, so that only `run.chunk` can save memory."""
    return method.couples_samples or method.turns > 1
