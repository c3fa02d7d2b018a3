"""Methods that are a game: the features learn the source and play against a discriminator, an adversary or a second head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.distributed import all_reduce_sum
from ...core.method import AdaptMethod
from ...core.numerics import wide

SMALLEST_NORM = 1e-12  # norm of the task's gradient, below which the ratio is taken of this


class Terms(NamedTuple):
    """What the features of a step are taught by. Scalars, with the weights that they have in the loss."""

    features: Tensor  # [..., D], as the head sees them
    task: Tensor  # on labels of the source
    transfer: Tensor  # the method's own


class Game(AdaptMethod):
    """An adversarial method. `forward` calls `note`; at log steps `gradient_ratio` is logged beside its metrics.

    The ratio is that of the norms of two gradients at the features of the batch: the transfer loss's, through the reversal and with its
    weight, over the cross-entropy's. It takes one more forward pass, and a backward pass down to the features, of logged steps alone.
    """

    is_game: bool = True
    _noting: bool = False
    _terms: Terms | None = None

    def note(self, features: Tensor, task: Tensor, transfer: Tensor) -> None:
        """Called in `forward` with the parts of a loss that moves the features."""
        if self._noting:
            self._terms = Terms(features, task, transfer)

    def watch(self, batch: Any, progress: float, turn: int = 0) -> Mapping[str, Tensor]:
        """The ratio of gradients; nothing for a turn in which the features don't play."""
        if not self.is_game:
            return {}
        with self._noted():
            self.forward(batch, progress, *((turn,) if self.turns > 1 else ()))  # pyright: ignore[reportCallIssue]
            found = self._terms
        return {} if found is None else {"gradient_ratio": gradient_ratio(found)}

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Within it, `note` keeps the terms, and a forward pass moves no frequencies of predicted classes."""
        weights: Any = self.resampling
        learning = [] if weights is None or not weights.training else [weights]
        self._noting = True
        for one in learning:
            one.training = False
        try:
            yield
        finally:
            self._noting, self._terms = False, None
            for one in learning:
                one.training = True


def gradient_ratio(terms: Terms) -> Tensor:
    """|d transfer / d features| / |d task / d features| over the images of all processes; 0 where the first is 0."""
    with torch.autocast(terms.features.device.type, enabled=False):
        squares = torch.stack([_square_norm(terms.transfer, terms.features), _square_norm(terms.task, terms.features)])
        transfer, task = all_reduce_sum(squares).sqrt()
    return transfer / task.clamp(min=SMALLEST_NORM)


def _square_norm(loss: Tensor, features: Tensor) -> Tensor:
    found = None
    if loss.requires_grad and features.requires_grad:  # features of a frozen network have no gradient
        (found,) = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
    return wide(features.new_zeros(()) if found is None else found).square().sum()
