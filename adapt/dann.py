"""DANN: a domain discriminator is trained, and the features are trained to confuse it (Ganin et al. 2016, arXiv:1505.07818).

`reversal: 0` is DANN's control: the discriminator still trains and BatchNorm still sees both domains, but the discriminator's gradient
does not reach the features. The gain of an adversarial method is its difference from this control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import MOST_UNITS, check_count, check_not_negative, check_positive, check_share
from ..core.method import Domains, Step
from ..core.numerics import wide
from .parts.below_head import check_below_head
from .parts.game import Game
from .parts.resampling import row_weights, source_error
from .parts.reversal import Discriminator, reversal_weight, reverse_gradient

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


class DANN(Game):
    """Cross-entropy on the source plus the adversarial loss of a domain discriminator, by gradient reversal (section 4.2).

    tllib (0.4) and the authors of CDAN have the same loss, but take the sigmoid before the logarithm. pytorch-adapt takes the mean of the
    three losses (classes, source's domain, target's domain), a third of this one at `trade_off: 2`. skada sums the losses of both domains,
    which is `trade_off: 2` too, at a constant weight, and its default discriminator ends in the softmax of one unit: its output is 1 and
    its gradient 0, so nothing learns. DomainBed's is another algorithm: discriminator and features take turns with an optimizer each, at a
    constant weight, with an optional penalty on the discriminator's gradient.

    reversal: Limit of the reversal weight, 0 or more; the weight rises from 0 along limit * (2 / (1 + exp(-steepness progress)) - 1)
        (lambda_p in the paper's training procedure). 0 is the control: the discriminator does not change the features.
    steepness: Steepness of that rise, above 0; the paper has 10. tllib counts steps instead, exp(-step / 1000): 20 in 20,000 steps.
    trade_off: Weight of the discriminator's loss beside the cross-entropy, 0 or more.
    hidden: Width of the discriminator's two hidden layers, 1 or more.
    discriminator_norm: Whether BatchNorm follows the discriminator's hidden layers, as in tllib; both domains are one batch for it.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.
    """

    rows_per_position = 2  # one concatenated forward of source and target: BatchNorm sees both domains
    couples_samples = False
    takes_chunk = True
    keeps_head = False
    sees_target = True
    resamples = ("source", "target")

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        reversal: float = 1.0,
        steepness: float = 10.0,
        trade_off: float = 1.0,
        hidden: int = 1024,
        discriminator_norm: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_share("label_smoothing", label_smoothing)
        check_not_negative("reversal", reversal, "1 is the published one, and 0 is the control")
        check_positive("steepness", steepness, "the paper has 10")
        check_not_negative("trade_off", trade_off, "1 is usual")
        check_count("hidden", hidden, 1, MOST_UNITS, "1024 is usual")
        self.classifier, self.chunk = classifier, chunk
        self.reversal, self.steepness = reversal, steepness
        self.trade_off, self.label_smoothing = trade_off, label_smoothing
        if reversal and trade_off and not self.moves_head():
            check_below_head(classifier, type(self).__name__.lower())
        self.discriminator = Discriminator(self.discriminator_input(), hidden, discriminator_norm)

    def moves_head(self) -> bool:
        """Whether the discriminator's loss changes the classifier's head, too."""
        return False

    def discriminator_input(self) -> int:
        """Number of inputs of the discriminator."""
        return self.classifier.feature_dim

    def forward(self, batch: Domains, progress: float) -> Step:
        """batch.source.images, batch.target.images: [N, C, h, w]; N is this process's share."""
        images = torch.stack([batch.source.images, batch.target.images])
        features = self.classifier.encode(images, self.chunk)  # [2, N, D]
        logits = self.classifier.head(features)  # [2, N, K]
        loss = source_error(self, logits[0], batch.source.labels, self.label_smoothing)
        rows = row_weights(self, logits, batch.source.labels)
        lam = reversal_weight(progress, self.reversal, self.steepness)
        domain, guesses = self.domain_loss(features, logits, lam, rows)
        self.note(features, loss, self.trade_off * domain)
        with torch.no_grad():
            metrics = {
                "source_accuracy": (logits[0].argmax(1) == batch.source.labels).float().mean(),
                "domain_accuracy": ((guesses[0] > 0).float().mean() + (guesses[1] <= 0).float().mean()) / 2,
                "domain_loss": domain.detach(),
            }
        return Step(loss + self.trade_off * domain, metrics)

    def domain_loss(
        self, features: Tensor, logits: Tensor, weight: float | Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy over both domains, and the discriminator's logits [2, N].

        weight: the reversal weight now. rows: weights of images, [2, N]; None: all 1.
        """
        guesses = wide(self.discriminator(reverse_gradient(features, weight)))
        return F.binary_cross_entropy_with_logits(guesses, domain_labels(guesses), weight=rows), guesses


def domain_labels(guesses: Tensor) -> Tensor:
    """Labels for logits [2, N]: 1 in the source's row, 0 in the target's."""
    return torch.stack([torch.ones_like(guesses[0]), torch.zeros_like(guesses[1])])
