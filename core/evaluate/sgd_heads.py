"""Many linear heads on frozen features, trained at once by SGD: candidates of a learning rate, a weight decay and an input.

All heads of an input (tap) read a batch in one matrix product of D x (M K), so M heads cost far less than M times one. DINOv2's linear
evaluation (Oquab et al. 2023, arXiv:2304.07193) trains its 52 heads like this. The losses are summed over heads, so each gets the gradient
that it has alone, and ends as it does alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, cross_entropy

from ..draws import Draws
from ..errors import UserError
from ..stream.order import straddling
from .head_updates import UPDATES

# A batch is processed in blocks of at most so many logits (4 MB), so that they stay in the processor's cache, but of some rows at least.
LOGITS, LEAST_ROWS = 1 << 20, 256
# MAE's BatchNorm before the head: no scale and shift; torch's weight of a batch in the running statistics.
BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM = 1e-6, 0.1
# Of the weights at the start; with more, the softmax says one class at once and learns no more.
LARGEST_STD = 1e3

# The features of a step: batch(step, rows) -> {tap: [n, D]}. rows: int64 [n], or slice(None) for the whole set in its own order.
Batch = Callable[[int, Tensor | slice], Mapping[str, Tensor]]


class Head(NamedTuple):
    """One candidate: the input that it reads, its peak learning rate, and the weight decay of its weight (the bias has none)."""

    tap: str
    lr: float
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How all heads are trained.

    steps: Number of steps, 1 or more.
    batch_size: Images in a step; null takes the whole set in each, and a number above the set's is cut to it.
    optimizer: sgd, nesterov (SGD with Nesterov's momentum), lars (MAE), adamw, or adamw-0.95, whose second beta is
        that (CAPI).
    momentum: Momentum of sgd, nesterov and lars, from 0 to below 1.
    warmup_steps: Steps in which the learning rate rises linearly from 0, before its cosine to 0.
    init_std: Standard deviation of the normal distribution that weights start from; 0 starts from zeros. MAE truncates the distribution at
        +-2, which is 200 deviations away and changes nothing. Biases start at 0.
    normalise: Whether inputs go through BatchNorm without scale and shift, as in MAE: by the batch's own statistics in training, by their
        running average afterwards.
    """

    steps: int
    batch_size: int | None = 256
    optimizer: str = "sgd"
    momentum: float = 0.9
    warmup_steps: int = 0
    init_std: float = 0.01
    normalise: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for numbers out of range."""
        if self.optimizer not in UPDATES:
            raise UserError(f"optimizer: {self.optimizer!r} is unknown; expected one of {', '.join(UPDATES)}")
        if self.steps < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise UserError(f"steps and batch_size: expected 1 or more, got {self.steps} and {self.batch_size}")
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f"warmup_steps: {self.warmup_steps} is given; expected 0 or more, and fewer than the {self.steps} steps"
            )
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum: {self.momentum} is given; expected a number from 0 to below 1")
        if not 0 <= self.init_std <= LARGEST_STD:
            raise UserError(f"init_std: {self.init_std} is given; expected 0 to {LARGEST_STD:g}; 0.01 is usual")

    def rate(self, step: int) -> float:
        """The part of its peak that each learning rate has at a step."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / (self.steps - self.warmup_steps)))


class _Group:
    """The heads of one input."""

    def __init__(self, numbers: Sequence[int], heads: Sequence[Head], first: Tensor, std: float, k: int, seed: int):
        """numbers: the heads' places among all; heads: they themselves; first: features [n, D] of the input."""
        self.tap, self.numbers, device = heads[0].tap, numbers, first.device
        draws = Draws(seed, torch.zeros(1, dtype=torch.int64), "heads/")
        # One start for all heads of an input: a head doesn't depend on which others are trained.
        start = std * draws.normal(f"weight/{self.tap}", k, first.shape[1])[0]
        self.weight = start.to(device).repeat(len(heads), 1, 1)  # [m, K, D]
        self.bias = torch.zeros(len(heads), k, device=device)
        self.lr = torch.tensor([head.lr for head in heads], device=device)
        self.decay = torch.tensor([head.weight_decay for head in heads], device=device)[:, None, None]
        self.decays = any(head.weight_decay for head in heads)
        self.diverged, self.losses = torch.zeros(len(heads), dtype=torch.bool, device=device), self.lr
        self.mean, self.variance = torch.zeros(first.shape[1], device=device), torch.ones(first.shape[1], device=device)
        self.states: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}

    def normalised(self, x: Tensor, training: bool) -> Tensor:
        return batch_norm(
            x, self.mean, self.variance, training=training, momentum=BATCH_NORM_MOMENTUM, eps=BATCH_NORM_EPSILON
        )

    def gradients(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the mean cross-entropy on [n, D] and labels [n]: losses [m], and the gradients of weight and bias."""
        m, k, width = self.weight.shape
        flat = self.weight.view(m * k, width)
        losses, slope_w, slope_b = x.new_zeros(m), None, torch.zeros_like(self.bias)
        for some, own in zip(x.split(_rows(m * k)), labels.split(_rows(m * k)), strict=True):
            own = own.expand(m, 1, -1)
            logits = (flat @ some.T).view(m, k, len(some)).add_(self.bias[:, :, None])
            logits -= logits.amax(1, keepdim=True)
            true = logits.gather(1, own)
            total = logits.exp_().sum(1, keepdim=True)
            losses += (total.log() - true).sum((1, 2))
            error = logits.div_(total)
            error.scatter_add_(1, own, torch.full_like(true, -1.0))
            error /= len(x)
            slope_b += error.sum(2)
            part = error.view(m * k, len(some)) @ some
            slope_w = part if slope_w is None else slope_w.add_(part)
        assert slope_w is not None
        return losses / len(x), slope_w.view_as(self.weight), slope_b

    def step(self, x: Tensor, labels: Tensor, training: HeadTraining, step: int) -> None:
        """One step of every head; one that diverges is set to 0 and gets a learning rate of 0, so that it stays there."""
        self.losses, slope_w, slope_b = self.gradients(x, labels)
        if bool((bad := ~(self.losses + slope_w.sum((1, 2))).isfinite()).any()):
            if not bool(x.isfinite().all()):
                raise UserError(f"training features ({self.tap}) are not finite; the model has diverged")
            self.diverged |= bad
            states = [part for state in self.states for part in state.values()]
            for tensor in (self.lr, self.weight, self.bias, slope_w, slope_b, *states):
                tensor[bad] = 0.0
        lr, update = self.lr * training.rate(step), UPDATES[training.optimizer]
        decay = self.decay if self.decays or training.optimizer == "lars" else None
        update(self.weight, slope_w, self.states[0], lr[:, None, None], decay, step, training.momentum)
        update(self.bias, slope_b, self.states[1], lr[:, None], None, step, training.momentum)


class FittedHeads(NamedTuple):
    """Trained heads. A head that diverged has weight and bias 0."""

    heads: tuple[Head, ...]
    weight: tuple[Tensor, ...]  # float32 [K, D] of each head
    bias: tuple[Tensor, ...]  # float32 [K] of each
    moments: Mapping[
        str, tuple[Tensor, Tensor]
    ]  # running mean and variance of each tap, [D]; empty unless inputs are normalised
    diverged: tuple[bool, ...]  # whether a loss, a gradient or a weight of the head was not finite
    losses: tuple[float, ...]  # of the last step's batch, before the step; infinite where diverged

    def logits(self, features: Mapping[str, Tensor], numbers: Sequence[int] | None = None) -> Tensor:
        """{tap: [N, D]} -> float32 [M, N, K] of all heads or of some, by their numbers, on the heads' device.

        Memory: 4 M N K bytes; for large sets take `scores`, or parts of the set.
        """
        numbers = range(len(self.heads)) if numbers is None else numbers
        inputs = {tap: self._normalised(features[tap], tap) for tap in {self.heads[i].tap for i in numbers}}
        return torch.stack([torch.addmm(self.bias[i], inputs[self.heads[i].tap], self.weight[i].T) for i in numbers])

    def scores(self, features: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """How many of N images each head has right, int64 [M], and its mean loss, float64 [M], on the CPU; block by block.

        features: {tap: [N, D]}; labels: int64 [N] in 0..K-1. A head that diverged has -1 right and an infinite loss.
        """
        right, loss = torch.zeros(len(self.heads), dtype=torch.int64), torch.zeros(len(self.heads)).double()
        size = _rows(len(self.heads) * len(self.bias[0]))
        for start in range(0, len(labels), size):
            part = {tap: x[start : start + size] for tap, x in features.items()}
            logits = self.logits(part)
            own = labels[start : start + size].to(logits.device)
            right += (logits.argmax(2) == own).sum(1).cpu()
            each = cross_entropy(logits.mT, own.expand(len(logits), -1), reduction="none")
            loss += each.sum(1, dtype=torch.float64).cpu()
        diverged = torch.tensor(self.diverged)
        return right.masked_fill(diverged, -1), (loss / len(labels)).masked_fill(diverged, math.inf)

    def _normalised(self, x: Tensor, tap: str) -> Tensor:
        x = x.to(self.bias[0])
        if tap not in self.moments:
            return x
        mean, variance = self.moments[tap]
        return (x - mean) / (variance + BATCH_NORM_EPSILON).sqrt()


def in_memory(features: Mapping[str, Tensor]) -> Batch:
    """The batches of features that lie in memory, {tap: [N, D]}, the same in every epoch."""
    return lambda step, rows: {tap: x[rows] for tap, x in features.items()}


@torch.no_grad()
def train_heads(
    batch: Batch,
    labels: Tensor,
    num_classes: int,
    heads: Sequence[Head],
    training: HeadTraining,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> FittedHeads:
    """Train linear heads with the same batches, each as if alone. A head whose loss overflows is left out and reported.

    batch: gives the features of a step, {tap: [n, D]}; with augmented features in a cache it picks those of the epoch,
    step * batch_size // N. labels: int64 [N] in 0..num_classes-1. device: where the training happens.
    The batches follow `straddling`: full ones in a new order each epoch. Memory: M K D floats for weight, gradient and each moment, and
    `LOGITS` logits.
    Raises UserError for no heads, rates or decays out of range, labels out of range, and features that are not finite.
    """
    labels = _checked(labels, num_classes, heads)
    size = len(labels) if training.batch_size is None else min(training.batch_size, len(labels))
    if training.normalise and size < 2:
        raise UserError(
            "normalise: the statistics of a batch need two images or more; raise batch_size, or give more images"
        )
    everything = training.batch_size is None
    rows = straddling(seed, "heads", len(labels), size, training.steps)
    groups: list[_Group] = []
    for step in range(training.steps):
        places = slice(None) if everything else next(rows)
        features, own = batch(step, places), labels[places].to(device)
        if not groups:
            groups = _groups(features, heads, num_classes, training, seed, device)
        for group in groups:
            x = features[group.tap].to(device, torch.float32)
            x = group.normalised(x, training=True) if training.normalise else x
            group.step(x, own, training, step)
    return _fitted(groups, heads, training.normalise)


def _checked(labels: Tensor, num_classes: int, heads: Sequence[Head]) -> Tensor:
    """Labels, int64 [N] on the CPU."""
    if not heads:
        raise UserError("linear heads: expected one or more candidates, got none")
    for head in heads:
        if not (math.isfinite(head.lr) and head.lr > 0 and math.isfinite(head.weight_decay) and head.weight_decay >= 0):
            raise UserError(f"linear heads: expected a finite lr above 0 and weight_decay of 0 or more, got {head}")
    labels = labels.detach().cpu().long()
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise UserError(
            f"linear heads need training images of classes 0..{num_classes - 1}, each labelled with one of them"
        )
    return labels


def _groups(
    features: Mapping[str, Tensor],
    heads: Sequence[Head],
    num_classes: int,
    training: HeadTraining,
    seed: int,
    device: torch.device | str,
) -> list[_Group]:
    """The heads of each tap, in the order in which taps come first."""
    groups = []
    for tap in dict.fromkeys(head.tap for head in heads):
        if tap not in features:
            raise ValueError(f"no features of {tap}; there are {', '.join(features)}")
        numbers = [i for i, head in enumerate(heads) if head.tap == tap]
        first = features[tap].to(device, torch.float32)
        groups.append(_Group(numbers, [heads[i] for i in numbers], first, training.init_std, num_classes, seed))
    return groups


def _fitted(groups: Sequence[_Group], heads: Sequence[Head], normalised: bool) -> FittedHeads:
    for group in groups:  # a loss says nothing of the last step, which follows it
        finite = group.weight.isfinite().flatten(1).all(1) & group.bias.isfinite().all(1)
        group.diverged |= ~finite
        group.weight[~finite] = 0.0
        group.bias[~finite] = 0.0
    where = {i: (group, place) for group in groups for place, i in enumerate(group.numbers)}
    placed = [where[i] for i in range(len(heads))]
    losses = [math.inf if bool(group.diverged[place]) else float(group.losses[place]) for group, place in placed]
    return FittedHeads(
        tuple(heads),
        tuple(group.weight[place] for group, place in placed),
        tuple(group.bias[place] for group, place in placed),
        {group.tap: (group.mean, group.variance) for group in groups if normalised},
        tuple(bool(group.diverged[place]) for group, place in placed),
        tuple(losses),
    )


def _rows(columns: int) -> int:
    """Rows of a block for M x K columns."""
    return max(LEAST_ROWS, LOGITS // columns)
