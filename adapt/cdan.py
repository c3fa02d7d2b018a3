"""CDAN+E: a discriminator sees features times predictions, weighted by certainty (Long et al. 2018, arXiv:1705.10667)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.distributed import all_reduce_sum, world
from ..core.numerics import wide
from .dann import DANN, domain_labels
from .parts.reversal import reverse_gradient

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


class MultilinearMap(nn.Module):
    """T(f, g) = f x g, flattened (eq. 5). Above `largest` numbers: the random sketch (R_f f) * (R_g g) / sqrt(d) (eq. 6).

    Over random sketches the expectation of <T(f, g), T(f', g')> is <f, f'> <g, g'>. The matrices are buffers: they are saved and are the
    same on all processes.
    """

    features: Tensor
    predictions: Tensor

    def __init__(self, feature_dim: int, classes: int, largest: int) -> None:
        super().__init__()
        self.randomized = feature_dim * classes > largest
        self.out = largest if self.randomized else feature_dim * classes
        if self.randomized:
            generator = torch.Generator().manual_seed(0)
            self.register_buffer("features", torch.randn(feature_dim, largest, generator=generator))
            self.register_buffer("predictions", torch.randn(classes, largest, generator=generator))

    def forward(self, features: Tensor, predictions: Tensor) -> Tensor:
        """[N, D], [N, K] -> [N, out]."""
        if self.randomized:
            return (features @ self.features) * (predictions @ self.predictions) / self.out**0.5
        return (predictions[:, :, None] * features[:, None, :]).flatten(1)


class CDAN(DANN):
    """Cross-entropy on the source plus the adversarial loss of a discriminator on T(features, predictions).

    As in the authors' code, predictions are detached in the map, the entropy passes through a gradient reversal of its own, and weights are
    normalised within each domain, here over all processes.

    entropy: Whether samples are weighted by 1 + exp(-H), H the entropy of their prediction (the paper's entropy conditioning, "+E").
    randomized_above: Largest size of the map, feature dimension times number of classes; a larger map is replaced by a random sketch of
        this size.
    """

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        entropy: bool = True,
        reversal: float = 1.0,
        trade_off: float = 1.0,
        hidden: int = 1024,
        label_smoothing: float = 0.0,
        randomized_above: int = 4096,
    ) -> None:
        self._map_size = (classifier.feature_dim, classifier.head.out_features, randomized_above)
        super().__init__(
            classifier, chunk, reversal=reversal, trade_off=trade_off, hidden=hidden, label_smoothing=label_smoothing
        )
        self.entropy = entropy
        self.couples_samples = entropy  # the weights are normalised over the batch
        self.map = MultilinearMap(*self._map_size)

    def discriminator_input(self) -> int:
        """Size of the map, or of its sketch."""
        dim, classes, largest = self._map_size
        return min(dim * classes, largest)

    def domain_loss(
        self, features: Tensor, logits: Tensor, weight: float | Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean over both domains of their weighted binary cross-entropy, and the discriminator's logits [2, N]."""
        predictions = wide(logits).softmax(-1)
        crossed = self.map(features.flatten(0, 1), predictions.detach().flatten(0, 1).to(features.dtype))
        guesses = wide(self.discriminator(reverse_gradient(crossed, weight))).unflatten(0, (2, -1))
        error = F.binary_cross_entropy_with_logits(guesses, domain_labels(guesses), weight=rows, reduction="none")
        if not self.entropy:
            return error.mean(), guesses
        # H is computed from log-softmax, which avoids the logarithm of 0.
        uncertainty = -(predictions * wide(logits).log_softmax(-1)).sum(-1)
        certainty = 1.0 + torch.exp(-reverse_gradient(uncertainty, weight))
        total = all_reduce_sum((certainty if rows is None else rows * certainty).detach().sum(1)) / world()
        return ((certainty * error).sum(1) / total).mean(), guesses
