"""MDD: a second head disagrees with the first on the target, and features make them agree (Zhang et al. 2019, arXiv:1904.05801)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import MOST_UNITS, check_count, check_not_negative, check_positive
from ..core.errors import UserError
from ..core.numerics import wide
from .parts.below_head import check_below_head
from .parts.resampling import weighted
from .parts.reversal import reversal_weight, reverse_gradient
from .parts.transfer import Joint, Transfer, Transferred

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier

INITIAL_STD = 0.01  # of the adversary's weights, in the authors' code


def log_of_others(logits: Tensor, classes: Tensor) -> Tensor:
    """log(1 - p_k) of softmax p of logits [N, K], k = classes [N]: finite however certain p_k is, where 1 - p_k rounds to 0."""
    chosen = F.one_hot(classes, logits.shape[1]).bool()
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(1)
    own = logits.gather(1, classes[:, None])[:, 0]
    return -F.softplus(own - others)


def margin_disparity(main: Tensor, adversary: Tensor, margin: float, weights: Tensor | None = None) -> Tensor:
    """What adversary and reversed features minimise: margin * CE(h', h) on the source - mean log(1 - p'[h]) on the target.

    main, adversary: logits [2, N, K] of the heads h and h', source first. h gives only its choices, so it gets no gradient.
    weights: of images, [2, N], 1 on average over the training; None: all 1.
    """
    source, target = main.argmax(-1)
    ours = wide(adversary)
    errors = torch.stack([margin * F.cross_entropy(ours[0], source, reduction="none"), -log_of_others(ours[1], target)])
    return weighted(errors, weights).mean(1).sum()


class MDD(Transfer):
    """Cross-entropy on the source plus the margin disparity discrepancy, by gradient reversal.

    The adversary is two layers on reversed features, without dropout; the main head is the classifier's own. The authors and tllib have two
    layers and dropout in both, and tllib dropout after the bottleneck. `reversal: 0` keeps the adversary learning while features get
    nothing of it, and `trade_off: 0` stops it too.

    tllib computes log(1 - p) as log(1 - p + 1e-6), which vanishes for certain predictions, and counts the steps of the reversal weight in
    an attribute that a resume loses. skada compares all pairs of images instead of each with itself, and takes the cross-entropy of
    softmaxes.

    margin: Weight of the source's part, above 0 (gamma).
    reversal: Limit of the reversal weight, 0 or more; the weight rises from 0 along limit * (2 / (1 + exp(-steepness progress)) - 1).
    steepness: Steepness of that rise, above 0. tllib counts steps instead, exp(-step / 1000): 20 in the 20,000 steps of Office-31.
    hidden: Width of the adversary's hidden layer, 1 or more.
    trade_off: Weight of the discrepancy beside the cross-entropy, 0 or more. 0 is the control.
    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1.

    Raises UserError for values outside of these ranges, and for a single class.
    """

    couples_samples = False
    is_game = True

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        margin: float = 4.0,
        reversal: float = 0.1,
        steepness: float = 10.0,
        hidden: int = 1024,
        trade_off: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(classifier, chunk, trade_off, label_smoothing, "1 is the published one")
        check_positive("margin", margin, "4 is the published one")
        check_not_negative(
            "reversal", reversal, "0.1 is the published one, and at 0 features get nothing of the adversary"
        )
        check_positive("steepness", steepness, "10 is usual, and 20 is tllib's for 20,000 steps")
        if len(classifier.classes) < 2:
            raise UserError("method: mdd needs at least 2 classes, as its heads disagree about them; the source has 1")
        check_count("hidden", hidden, 1, MOST_UNITS, "1024 is the published one")
        if reversal and trade_off:
            check_below_head(classifier, "mdd")
        self.margin, self.reversal, self.steepness = margin, reversal, steepness
        outputs = classifier.head.out_features  # of the main head: a kept one may have one for unknown images
        self.adversary = nn.Sequential(
            nn.Linear(classifier.feature_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
        )
        for layer in self.adversary:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=INITIAL_STD)
                nn.init.zeros_(layer.bias)

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """Watched: how often both heads agree, on each domain. The game works while they agree on the source more than on the target."""
        weight = reversal_weight(progress, self.reversal, self.steepness)
        guesses = self.adversary(reverse_gradient(joint.features, weight))
        agreement = (guesses.argmax(-1) == joint.logits.argmax(-1)).float().mean(1)
        watched = {"source_agreement": agreement[0], "target_agreement": agreement[1]}
        return margin_disparity(joint.logits, guesses, self.margin, joint.weights), watched
