"""CDAN+E: a discriminator sees features times predictions, weighted by certainty (Long et al. 2018, arXiv:1705.10667)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_count
from ..core.distributed import all_reduce_sum, world
from ..core.numerics import wide
from .dann import DANN, domain_labels
from .parts.resampling import weighted
from .parts.reversal import reverse_gradient

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


LARGEST_SKETCH = 1 << 20
"""Numbers of a random sketch; more is a mistake, and would fill any memory."""


class MultilinearMap(nn.Module):
    """T(f, g) = f x g, flattened (eq. 5); with `sketch` numbers, the random sketch (R_f f) * (R_g g) / sqrt(d) (eq. 6).

    Over random sketches the expectation of <T(f, g), T(f', g')> is <f, f'> <g, g'>. The matrices are buffers: they are saved and are the
    same on all processes.
    """

    features: Tensor
    predictions: Tensor

    def __init__(self, feature_dim: int, classes: int, sketch: int | None = None) -> None:
        super().__init__()
        self.randomized = sketch is not None
        self.out = feature_dim * classes if sketch is None else sketch
        if sketch is not None:
            generator = torch.Generator().manual_seed(0)
            self.register_buffer("features", torch.randn(feature_dim, sketch, generator=generator))
            self.register_buffer("predictions", torch.randn(classes, sketch, generator=generator))

    def forward(self, features: Tensor, predictions: Tensor) -> Tensor:
        """[N, D], [N, K] -> [N, out]."""
        if self.randomized:
            with torch.autocast(features.device.type, enabled=False):
                features, predictions = wide(features), wide(predictions)
                return (features @ self.features) * (predictions @ self.predictions) / self.out**0.5
        return (predictions[:, :, None] * features[:, None, :]).flatten(1)


class CDAN(DANN):
    """Cross-entropy on the source plus the adversarial loss of a discriminator on T(features, predictions).

    As in the authors' code, predictions are detached in the map, the entropy passes through a gradient reversal of its own, and weights are
    normalised within each domain, here over all processes. The authors add 1e-5 inside the entropy's logarithm; their discriminator has
    dropout of 0.5, ten times the rate and twice the decay, which is not done here.

    tllib detaches the entropy and normalises both domains' weights together. pytorch-adapt divides each domain's weights by their largest,
    so a domain with few certain images weighs less; predictions are not detached in its map, while its entropy is, by default. skada
    multiplies features by logits, not by predictions, with gradient, and draws its sketch anew in each forward, from the same seed.

    entropy: Whether samples are weighted by 1 + exp(-H), H the entropy of their prediction (the paper's entropy conditioning, "+E"). The
        published tables of tllib are without.
    map: How features and predictions are multiplied: exact, or by a random sketch, which the run's log says. auto: exact where there is a
        bottleneck, as in tllib (256 x 31 for Office-31), and elsewhere up to randomized_above.
    randomized_above: Size of a sketch, 1 or more, and where there is no bottleneck the largest size of the map, feature dimension times
        number of classes, up to which auto is exact. tllib sketches only DomainNet, at 51200.
    """

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        entropy: bool = True,
        map: Literal["auto", "exact", "sketch"] = "auto",
        randomized_above: int = 4096,
        **keys: Any,
    ) -> None:
        check_count("randomized_above", randomized_above, 1, LARGEST_SKETCH)
        dim, classes = classifier.feature_dim, classifier.head.out_features
        exact = map == "exact" or (
            map == "auto" and (classifier.bottleneck is not None or dim * classes <= randomized_above)
        )
        self._inputs = dim * classes if exact else randomized_above
        self.entropy = entropy
        super().__init__(classifier, chunk, **keys)
        self.couples_samples = entropy  # the weights are normalised over the batch
        self.map = MultilinearMap(dim, classes, None if exact else randomized_above)
        if not exact:
            self.notes = (
                f"the discriminator sees a random sketch of {randomized_above:,} numbers of the map of {dim:,} features x {classes:,} "
                "classes; method.map=exact takes all of it",
            )

    def moves_head(self) -> bool:
        """By the certainty of predictions, whose gradient is reversed; the map takes them without gradient."""
        return self.entropy

    def discriminator_input(self) -> int:
        """Size of the map, or of its sketch."""
        return self._inputs

    def domain_loss(
        self, features: Tensor, logits: Tensor, weight: float | Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean over both domains of their weighted binary cross-entropy, and the discriminator's logits [2, N]."""
        predictions = wide(logits).softmax(-1)
        crossed = self.map(wide(features).flatten(0, 1), predictions.detach().flatten(0, 1).to(wide(features).dtype))
        guesses = wide(self.discriminator(reverse_gradient(crossed.unflatten(0, (2, -1)), weight)))
        error = F.binary_cross_entropy_with_logits(guesses, domain_labels(guesses), weight=rows, reduction="none")
        if not self.entropy:
            return error.mean(), guesses
        # H is computed from log-softmax, which avoids the logarithm of 0.
        uncertainty = -(predictions * wide(logits).log_softmax(-1)).sum(-1)
        certainty = 1.0 + torch.exp(-reverse_gradient(uncertainty, weight))
        total = all_reduce_sum(weighted(certainty, rows).detach().sum(1)) / world()
        return ((certainty * error).sum(1) / total).mean(), guesses
