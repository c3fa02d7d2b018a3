"""Re-sampling to equal class frequencies as weights of the loss: the order of images stays as it is (RLSbench, arXiv:2302.03020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.distributed import all_reduce_sum
from ...core.method import AdaptMethod
from ...core.numerics import unless_skipped, wide

LEAST_SHARE = 0.01  # share of a batch in the target's class frequencies, from the hundredth batch on; before, all batches count alike
HEAVIEST = 10.0  # weight of a target image whose predicted class is rare


class Resampling(nn.Module):
    """The weights of a batch's images under which all classes are equally frequent, 1 on average.

    A source image of label y weighs 1 / (K p(y)), p its share in the training set. A target image weighs as much by its predicted
    class, whose frequency is a running mean over all processes; at most 10. RLSbench predicts the whole target anew in each epoch;
    here an image's pseudo-label is the one of the forward that trains. Frequencies are a buffer, so that a resumed run has them, and
    the batch of a skipped step does not move them.
    """

    source_weights: Tensor
    frequencies: Tensor
    batches: Tensor

    def __init__(self, source_weights: Tensor) -> None:
        """source_weights: [K], `label_shift.balancing` of the source's priors."""
        super().__init__()
        classes = len(source_weights)
        self.register_buffer("source_weights", source_weights.float())
        self.register_buffer("frequencies", torch.full((classes,), 1 / classes))
        self.register_buffer("batches", torch.ones(()))  # equal frequencies count as the first one
        self.moved: tuple[Tensor, Tensor] | None = None  # both with the step's batch

    def source(self, labels: Tensor) -> Tensor:
        """int64 [N] -> [N]."""
        return self.source_weights[labels]

    @torch.no_grad()
    def target(self, guesses: Tensor, count: bool = True) -> Tensor:
        """Predicted classes int64 [N] -> [N]; in training mode the batch moves the frequencies first, unless `count` is false."""
        if self.training and count:
            counts, batches = (
                all_reduce_sum(F.one_hot(guesses, len(self.frequencies)).sum(0).to(self.frequencies)),
                self.batches + 1,
            )
            moves = (counts / counts.sum() - self.frequencies) * (1 / batches).clamp(min=LEAST_SHARE)
            self.moved = self.frequencies + moves, batches
        frequencies = self.frequencies if self.moved is None else self.moved[0]
        return (1 / (len(frequencies) * frequencies[guesses])).clamp(max=HEAVIEST)

    @torch.no_grad()
    def after_step(self, skipped: Tensor | None) -> None:
        """Write the frequencies with the step's batch. skipped: `Method.skipped`."""
        if self.moved is None:
            return
        for mine, new in zip((self.frequencies, self.batches), self.moved, strict=True):
            mine.copy_(unless_skipped(new, mine, skipped))
        self.moved = None


def source_error(method: AdaptMethod, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of a source batch, weighted where the config asks for re-sampling: every method's loss on labels.

    logits: [N, K]; labels: int64 [N]. The mean of weights over the training set is 1, so nothing is divided by their sum in the batch.
    """
    if method.resampling is None:
        return F.cross_entropy(wide(logits), labels, label_smoothing=label_smoothing)
    errors = F.cross_entropy(wide(logits), labels, label_smoothing=label_smoothing, reduction="none")
    return (method.resampling.source(labels) * errors).mean()


def weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """weights * values; the values themselves where the weights are None, which stands for 1."""
    return values if weights is None else weights * values


def of_each_domain(weights: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The weights [N] of the source's and of the target's images, from both, [2, N]; None where all are 1."""
    return (None, None) if weights is None else (weights[0], weights[1])


def target_weights(method: AdaptMethod, guesses: Tensor, count: bool = True) -> Tensor | None:
    """Weights [N] of target images by their predicted classes int64 [N]; None where they all are 1.

    count: whether these classes move the running frequencies: once for each
    step of a method.
    """
    if method.resampling is None or "target" not in method.resamples:
        return None
    return method.resampling.target(guesses, count)


def row_weights(method: AdaptMethod, logits: Tensor, labels: Tensor) -> Tensor | None:
    """Weights [2, N] of a batch's source and target images for a loss on both; None where they all are 1. logits: [2, N, K]."""
    target = target_weights(method, logits[1].detach().argmax(1))
    return None if target is None else torch.stack([method.resampling.source(labels), target])
