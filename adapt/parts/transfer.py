"""What methods of one loss and one update share: cross-entropy on the source, and a transfer loss on one joint forward of both domains.

`trade_off: 0` is the control of such a method: source and target are still encoded together, so BatchNorm sees both, but no gradient of
the transfer loss reaches anything. The gain of a method is its difference from this control and from source-only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...core.checks import check_not_negative, check_share
from ...core.distributed import all_reduce_sum, gather, gather_equal, world
from ...core.errors import UserError
from ...core.method import Domains, Step
from ...core.numerics import wide
from .game import Game
from .resampling import row_weights, source_error

if TYPE_CHECKING:
    from ...core.model.classifier import Classifier

Transferred = tuple[Tensor, dict[str, Tensor]]
"""A transfer loss (a scalar), and what is worth watching beside it (scalars, detached)."""


class Joint(NamedTuple):
    """What a transfer loss is made of: this process's source and target images after one joint forward. Float32 or float64."""

    features: Tensor  # [2, N, D], as the head sees them; source first
    logits: Tensor  # [2, N, K]
    labels: Tensor  # int64 [N], of the source
    weights: Tensor | None = None  # of images, [2, N], 1 on average; None: all are 1 (`label_shift.resample`)

    def detached(self) -> Joint:
        """The same without its graph."""
        return self._replace(features=self.features.detach(), logits=self.logits.detach())

    def whole_features(self) -> Tensor:
        """[2, B, D] of all B images a domain, of all processes, with gradient."""
        return _whole(self.features)

    def whole_logits(self) -> Tensor:
        """[2, B, K] of all B images a domain, of all processes, with gradient."""
        return _whole(self.logits)

    def whole_labels(self) -> Tensor:
        """int64 [B], in the same order."""
        return gather_equal(self.labels).flatten()

    def whole_weights(self) -> Tensor | None:
        """[2, B], in the same order; None where all are 1."""
        return None if self.weights is None else _whole(self.weights)


def _whole(rows: Tensor) -> Tensor:
    return gather(rows.transpose(0, 1)).transpose(0, 1) if world() > 1 else rows


class Transfer(Game):
    """Cross-entropy on the source plus `trade_off` times a transfer loss; derive from it and give `transfer`.

    A transfer loss takes the weights of images as if each image were in the batch as often as its weight says; one that cannot has
    `resamples = ("source",)`.

    needs_pairs: whether the loss compares images of one domain with each other, so that it needs two of them. is_game: whether another
    player learns against the features (`Game`).
    """

    rows_per_position = 2  # one joint forward of source and target: BatchNorm sees both domains
    couples_samples = True
    takes_chunk = True
    keeps_head = False
    sees_target = True
    resamples = ("source", "target")
    needs_pairs = False
    is_game = False

    def __init__(
        self, classifier: Classifier, chunk: int | None, trade_off: float, label_smoothing: float, usual: str
    ) -> None:
        """usual: the published value of trade_off, for the message. Raises UserError for values out of their range."""
        super().__init__()
        check_share("label_smoothing", label_smoothing)
        check_not_negative("trade_off", trade_off, f"{usual}, and 0 is the control")
        self.classifier, self.chunk = classifier, chunk
        self.trade_off, self.label_smoothing = trade_off, label_smoothing

    def transfer(self, joint: Joint, progress: float) -> Transferred:
        """The transfer loss, and what is worth watching beside it."""
        raise NotImplementedError(f"{type(self).__name__} needs a transfer(joint, progress)")

    def seen_by_head(self, features: Tensor, batch: Domains) -> Tensor:
        """[2, N, D] -> [2, N, D]: what the method does to features before head and transfer loss; by default nothing."""
        return features

    def forward(self, batch: Domains, progress: float) -> Step:
        """batch.source.images, batch.target.images: [N, C, h, w]; N is this process's share. Raises UserError for too few of them."""
        if self.needs_pairs and len(batch.source.images) * world() < 2:
            raise UserError(
                "optim.batch_size: this method compares images of one domain, so it needs at least 2 of each"
            )
        images = torch.stack([batch.source.images, batch.target.images])
        features = self.seen_by_head(self.classifier.encode(images, self.chunk), batch)  # [2, N, D]
        logits = wide(self.classifier.head(features))  # [2, N, K]
        source = source_error(self, logits[0], batch.source.labels, self.label_smoothing)
        joint = Joint(wide(features), logits, batch.source.labels, row_weights(self, logits, batch.source.labels))
        loss, watched = self.transfer(joint if self.trade_off else joint.detached(), progress)
        self.note(features, source, self.trade_off * loss)
        with torch.no_grad():
            metrics = {
                "source_accuracy": (logits[0].argmax(1) == batch.source.labels).float().mean(),
                "transfer_loss": loss.detach(),
                "effective_classes": effective_classes(all_reduce_sum(logits[1].softmax(1).mean(0)) / world()),
            }
        return Step(source + self.trade_off * loss, {**metrics, **watched})


def effective_classes(mean: Tensor) -> Tensor:
    """exp(H(mean)) of the mean prediction [K]: 1 where everything is one class, K where all are equally frequent.

    A method that collapses falls below half of the classes that there are.
    """
    return torch.special.entr(mean).sum().exp()
