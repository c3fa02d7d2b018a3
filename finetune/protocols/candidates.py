"""Candidates that are trained by steps and chosen on a slice: what linear heads and attentive probes have alike.

They read stored features, or epochs of features of random crops. All candidates are trained at once on the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ...core.checks import LARGEST_RATE, SMALLEST_RATE
from ...core.errors import UserError
from ...core.evaluate.held_out import held_out_rows, nothing_to_choose_on
from ...core.evaluate.sgd_heads import Head, HeadTraining
from .contract import Counts, Features, Fitted, Known

Augment = Literal["none", "crops"]
# The learning rate of a candidate is that of a batch of so many images; it grows with the batch.
RATE_BATCH = 256
# Of epochs, steps and images in a batch; more is a mistake.
MOST = 10_000_000
CHOSEN_ON = "the most right, then the lowest loss, on a held-out 20 % of the training images; then trained anew on all"


class Candidate(NamedTuple):
    """The features that it reads, its learning rate for a batch of RATE_BATCH, and its weight decay."""

    tap: str
    lr: float
    weight_decay: float


class Trained(Protocol):
    """Trained candidates, such as `FittedHeads`."""

    @property
    def diverged(self) -> tuple[bool, ...]: ...
    def logits(self, features: Mapping[str, Tensor], numbers: Sequence[int] | None = None, /) -> Tensor: ...
    def scores(self, features: Mapping[str, Tensor], labels: Tensor, /) -> tuple[Tensor, Tensor]: ...


# Train some candidates on the images at rows, int64 [n], at the rates of a batch of a training on so many images.
Train = Callable[[Tensor, Sequence[Candidate], int], Trained]


class Length(NamedTuple):
    """How long a training is: epochs or steps (the other is None), the images in a step, and the part of the steps that is warm-up."""

    epochs: int | None
    steps: int | None
    batch_size: int
    warmup: float

    def check(self, section: str) -> None:
        """Raises UserError for numbers out of range."""
        for key, value in (("epochs", self.epochs), ("steps", self.steps), ("batch_size", self.batch_size)):
            if value is not None and not 1 <= value <= MOST:
                raise UserError(f"{section}.{key}: {value} is given; expected 1 to {MOST:,}")
        if not 0 <= self.warmup < 1:
            raise UserError(f"{section}.warmup: {self.warmup} is given; expected a part of the steps, 0 to below 1")

    def of(self, n: int) -> tuple[int, int, int]:
        """(steps, warm-up steps, images in a step) for n images. A batch has all images where there are fewer."""
        size = min(self.batch_size, n)
        steps = math.ceil((self.epochs or 0) * n / size) if self.steps is None else self.steps
        return steps, min(round(self.warmup * steps), steps - 1), size

    def described(self, n: int) -> dict[str, int]:
        """As `of`, by name."""
        return dict(zip(("steps", "warmup_steps", "batch_size"), self.of(n), strict=True))


class StepFeatures:
    """The features of the images in each step, {tap: [n, ...]}, as `train_heads` asks for them.

    rows: int64 [n], the training images that are trained on. With crops, epoch e of the training reads epoch e of the augmented features;
    with `cached_epochs` = K, epoch e mod K. Memory: the features of K epochs, which lie in the cache on the disk where `run.feature_cache`
    has room; without K, those of two epochs, which are extracted as the training comes to them.
    """

    def __init__(
        self,
        train: Known,
        taps: Sequence[str],
        rows: Tensor,
        batch_size: int,
        augment: Augment,
        cached_epochs: int | None,
    ) -> None:
        self.train, self.taps, self.rows = train, tuple(dict.fromkeys(taps)), rows
        self.size, self.augment, self.cached = batch_size, augment, cached_epochs
        self.epochs: dict[int, Features] = {}

    def __call__(self, step: int, places: Tensor | slice) -> dict[str, Tensor]:
        """places: int64 [n], which of `rows` the step reads, as `straddling` gives them."""
        rows = self.rows[places]
        if self.augment == "none":
            return {tap: self.train.features[tap][rows] for tap in self.taps}
        epoch = torch.arange(step * self.size, step * self.size + len(rows)) // len(self.rows)
        parts = [(self._epoch(int(one)), rows[epoch == one]) for one in epoch.unique()]
        return {tap: torch.cat([found[tap][some] for found, some in parts]) for tap in self.taps}

    def _epoch(self, number: int) -> Features:
        if self.cached is not None:
            number %= self.cached
        if number not in self.epochs:
            if self.train.epoch is None:
                raise ValueError("these images cannot be augmented")
            if self.cached is None:
                self.epochs = {old: self.epochs[old] for old in self.epochs if old == number - 1}
            self.epochs[number] = self.train.epoch(number, self.taps, self.cached is not None)
        return self.epochs[number]


def check_candidates(
    section: str, candidates: Sequence[Candidate], augment: Augment, cached_epochs: int | None, counts: Counts
) -> int:
    """The number of images of the smallest training. Raises UserError for rates out of range, and for nothing to choose on.

    section: as the config calls it, for messages.
    """
    if not candidates:
        raise UserError(
            f"{section}: there is no candidate; give at least one input, one learning rate and one weight decay"
        )
    for one in candidates:
        if not SMALLEST_RATE <= one.lr <= LARGEST_RATE:
            raise UserError(
                f"{section}.lr: {one.lr} is given; expected numbers from {SMALLEST_RATE:g} to {LARGEST_RATE:g}, such as 0.1"
            )
        if not 0 <= one.weight_decay <= LARGEST_RATE:
            raise UserError(
                f"{section}.weight_decay: {one.weight_decay} is given; expected numbers from 0 to {LARGEST_RATE:g}"
            )
    if cached_epochs is not None and augment == "none":
        raise UserError(
            f"{section}.cached_epochs: {cached_epochs} is given, but nothing is augmented; give augment=crops, or leave cached_epochs out"
        )
    if cached_epochs is not None and not 1 <= cached_epochs <= MOST:
        raise UserError(f"{section}.cached_epochs: {cached_epochs} is given; expected 1 to {MOST:,}, or null")
    if len(candidates) == 1:
        return len(counts.labels)
    if nothing_to_choose_on(counts.units, counts.labels):
        raise UserError(
            f"{section}: no class has two different training images to choose among {len(candidates)} candidates on; "
            "give a single input, lr and weight_decay, or add images"
        )
    return len(counts.labels) - int(held_out_rows(counts.units, counts.labels, seed=0).sum())


def training_of(length: Length, n: int, **options: Any) -> HeadTraining:
    """How linear heads are trained on n images."""
    return HeadTraining(**length.described(n), **options)


def trainer(
    train: Known,
    length: Length,
    augment: Augment,
    cached_epochs: int | None,
    fit: Callable[..., Trained],
    **options: Any,
) -> Train:
    """How candidates are trained: by `fit`, which is `train_heads` or has its arguments. options: of HeadTraining."""

    def make(rows: Tensor, candidates: Sequence[Candidate], rate_images: int) -> Trained:
        training = training_of(length, len(rows), **options)
        assert training.batch_size is not None
        rise = length.of(rate_images)[2] / RATE_BATCH
        heads = [Head(one.tap, one.lr * rise, one.weight_decay) for one in candidates]
        features = StepFeatures(
            train, [one.tap for one in candidates], rows, training.batch_size, augment, cached_epochs
        )
        labels, k = train.labels[rows], len(train.classes)
        return fit(features, labels, k, heads, training, seed=train.seed, device=train.device)

    return make


def how_trained(fitted: Fitted, expects: str) -> dict[str, str]:
    """What the settings of all these protocols end with. expects: how the publication shows images."""
    return {
        "rate": f"lr x batch_size / 256{' of the choice' if fitted.chosen else ''}, cosine to 0 in every step",
        "iterate": "last",
        "chosen": CHOSEN_ON if fitted.chosen else "nothing",
        "expects": expects,
    }


def fit_candidates(section: str, train: Known, candidates: Sequence[Candidate], make: Train) -> Fitted:
    """Train all candidates on 80 % of the images, choose on the rest, and train the best on all. A single one is trained on all.

    Best means most held-out images right, then lowest held-out loss. The slice is shown without augmentation. The best is trained anew at
    the very rate that was chosen: where a batch would have all images, the batch of all does not raise it.
    Raises UserError if all candidates diverge, or the one that was chosen.
    """
    everything, best, fewest = torch.arange(len(train.labels)), 0, len(train.labels)
    tried, held_out = list[dict[str, Any]](), None
    if len(candidates) > 1:
        outer = held_out_rows(train.units, train.labels, seed=train.seed)
        fewest -= int(outer.sum())
        models, labels = make(everything[~outer], candidates, fewest), train.labels[outer]
        shown = {tap: train.features[tap][outer] for tap in {one.tap for one in candidates}}
        right, loss = models.scores(shown, labels)
        order = [
            (hits, -value) if math.isfinite(value) else (-1, -math.inf)
            for hits, value in zip(right.tolist(), loss.tolist(), strict=True)
        ]
        best = order.index(max(order))
        tried = [
            {**one._asdict(), "accuracy": max(hits, 0) / len(labels), **({"diverged": True} if hits < 0 else {})}
            for one, (hits, _) in zip(candidates, order, strict=True)
        ]
        _refuse_diverged(section, candidates, all(hits < 0 for hits, _ in order))
        held_out = models.logits(shown, [best])[0].float().cpu(), labels
    model = make(everything, [candidates[best]], fewest)
    _refuse_diverged(section, [candidates[best]], model.diverged[0])

    def scores(features: Features) -> Tensor:
        return model.logits(features, [0])[0].float().cpu()

    chosen = candidates[best]._asdict() if tried else {}
    return Fitted(scores, "logits", chosen, tuple(tried), held_out=held_out)


def _refuse_diverged(section: str, candidates: Sequence[Candidate], diverged: bool) -> None:
    if diverged:
        least = min(candidates, key=lambda one: (one.lr, one.weight_decay))
        raise UserError(
            f"{section}: the training diverged at lr = {least.lr:g} and weight_decay = {least.weight_decay:g}; give lower values"
        )
