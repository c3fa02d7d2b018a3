"""MCD: two heads disagree on target images as much as they can, and the features learn to make them agree (Saito et al. 2018,
arXiv:1712.02560).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.checks import check_count, check_not_negative, check_share
from ..core.method import Domains, Step
from ..core.numerics import wide
from .parts.game import Game
from .parts.resampling import source_error, target_weights

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier

ALL, HEADS, FEATURES = 0, 1, 2  # whose turn it is; from 2 on the features'
MOST_GENERATOR_STEPS = 16


class MCD(Game):
    """Section 3.3 of the paper, its three steps on one batch: features and heads learn the source; the heads learn the source and to
    disagree on the target; then the features alone, several times, learn to reduce the disagreement.

    As in tllib, each turn encodes both domains in one forward, so BatchNorm sees both; the authors encode each apart. A head is one layer
    on the classifier's features; those of the authors and of tllib have two hidden layers with BatchNorm and dropout (tllib: of 1024).
    Unlike tllib, there is no term that balances classes (0.01 times -mean_k log of the mean prediction, of both heads), the features keep
    their momentum, and the head that is exported and tested is the first one, not the better of two on the test.

    trade_off: Weight of the discrepancy, 0 or more: 1 by the authors; tllib has 10 for Office-31 and 30 for Office-Home. 0 is the control:
        all forwards stay, the second turn trains the heads on the source, and in the last ones nobody moves.
    generator_steps: Updates of the features alone on each batch, 1 to 16; n in the paper, 4 in most of its experiments.
    label_smoothing: Label smoothing of both heads' cross-entropy on the source, from 0 to below 1.
    """

    rows_per_position = 2  # one concatenated forward of source and target
    couples_samples = False
    takes_chunk = True
    sees_target = True
    resamples = ("source", "target")

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        trade_off: float = 1.0,
        generator_steps: int = 4,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_share("label_smoothing", label_smoothing)
        check_not_negative("trade_off", trade_off, "1 is the authors', and 0 is the control")
        check_count("generator_steps", generator_steps, 1, MOST_GENERATOR_STEPS, "4 is usual")
        self.classifier, self.chunk = classifier, chunk
        self.trade_off, self.label_smoothing = trade_off, label_smoothing
        self.turns = 2 + generator_steps
        # With weights of its own: heads that begin equal agree everywhere, and no gradient ever parts them.
        self.second = classifier.another_head()

    def forward(self, batch: Domains, progress: float, turn: int = 0) -> Step:
        """batch.source.images, batch.target.images: [N, C, h, w]; N is this process's share."""
        images = torch.stack([batch.source.images, batch.target.images])
        features = self.classifier.encode(images, self.chunk)  # [2, N, D]
        if turn == HEADS:
            features = features.detach()
        first, second = (wide(head(features)) for head in (self.classifier.head, self.second))  # [2, N, K]
        weights = target_weights(self, first[1].detach().argmax(1), count=turn == ALL)
        apart = discrepancy(first[1], second[1], weights)
        labels, smooth = batch.source.labels, self.label_smoothing
        one, two = (source_error(self, logits[0], labels, smooth) for logits in (first, second))
        known = one + two
        if turn == FEATURES:
            self.note(features, known, self.trade_off * apart)
        with torch.no_grad():
            metrics = {
                "source_accuracy": (first[0].argmax(1) == labels).float().mean(),
                "discrepancy": apart.detach(),
                "agreement": (first[1].argmax(1) == second[1].argmax(1)).float().mean(),
            }
        if turn == ALL:
            return Step(known, metrics)
        return Step(known - self.trade_off * apart if turn == HEADS else self.trade_off * apart, metrics)

    def frozen(self, progress: float, turn: int = 0) -> Iterator[nn.Parameter]:
        """The features in the heads' turn, the heads in the features' turns."""
        heads = {*self.classifier.head.parameters(), *self.second.parameters()}
        for parameter in self.parameters() if turn != ALL else ():
            if (parameter in heads) == (turn != HEADS) or (turn > HEADS and self.trade_off == 0.0):
                yield parameter


def discrepancy(first: Tensor, second: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over images and classes of |p_1k - p_2k|, p the softmax (d of the paper). first, second: logits [N, K].

    weights: of images, [N], 1 on average over the training; None: all 1.
    """
    differences = (first.softmax(-1) - second.softmax(-1)).abs()
    return (differences if weights is None else weights[:, None] * differences).mean()
