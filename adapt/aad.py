"""AaD: target predictions attract those of their neighbours and repel those of the rest (Yang et al. 2022, arXiv:2205.04183)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_count, check_not_negative
from ..core.config.duration import Duration
from ..core.distributed import gather, gather_equal
from ..core.errors import UserError
from ..core.method import Domains, Overview, Step
from ..core.numerics import unless_skipped, wide
from .parts.source_free import SourceFree, whole_index
from .parts.transfer import effective_classes

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier

MOST_NEIGHBOURS = 1_000


class AaD(SourceFree):
    """-(1/B) sum_i sum_j S_j p_i + a (1/B) sum_i sum_m p_i p_m (eq. 5): j are the nearest neighbours of i in the whole target, m the other
    images of the batch. S and the features that find neighbours come from banks with one row for each target image; all of the classifier
    learns, its head too.

    The banks are filled in evaluation's view before the first step, and all processes write a batch's rows after its step. The authors
    write them before they search; here a neighbour that is in the same batch is found as it was at its last visit. An image is kept out
    of its own neighbours by its row, where the code drops whatever comes first. B is the global batch. The code fills its banks in the
    view of training, and its loss is this one plus a number without gradient, as its divergence has p in the place of log p.

    trade_off: Weight of the whole loss, 0 or more; 1 by the authors. 0 is the control: all forwards stay, so that BatchNorm's statistics
        become the target's.
    neighbours: Neighbours of each image, 1 or more: 5 on VisDA, 3 on small sets (K).
    dispersion: Weight of the repulsion at the beginning, 0 or more; 1 by the authors. 0 lets all images become one class.
    decay: How fast the repulsion fades, 0 or more: a = (1 + 10 progress)^-decay; 5 on VisDA, 0.75 on Office-31 (beta).

    Raises UserError for values out of their range, and for a target with too few images.
    """

    features: Tensor  # [M, D], unit length
    predictions: Tensor  # [M, K]
    refresh_every = Duration(100, "%")  # before the first step only

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        trade_off: float = 1.0,
        neighbours: int = 5,
        dispersion: float = 1.0,
        decay: float = 5.0,
    ) -> None:
        super().__init__(classifier, chunk)
        check_count("neighbours", neighbours, 1, MOST_NEIGHBOURS, "5 is usual")
        check_not_negative("trade_off", trade_off, "1 is the authors', and 0 is the control")
        check_not_negative("dispersion", dispersion, "1 is usual")
        check_not_negative("decay", decay, "5 is the published one for VisDA, 0.75 for Office-31")
        self.trade_off, self.neighbours, self.dispersion, self.decay = trade_off, neighbours, dispersion, decay
        self.register_buffer("bank_features", torch.empty(0, classifier.feature_dim))
        self.register_buffer("bank_predictions", torch.empty(0, classifier.head.out_features))
        self.latest: tuple[Tensor, Tensor, Tensor] | None = None  # index, features and predictions of the step's batch

    def make_room(self, targets: int) -> None:
        """Raises UserError if there are not enough images for the neighbours."""
        if targets <= self.neighbours:
            raise UserError(
                f"method.neighbours: {self.neighbours} other images are asked for, and the target has {targets}; lower it"
            )
        self.bank_features = self.bank_features.new_zeros(targets, self.bank_features.shape[1])
        self.bank_predictions = self.bank_predictions.new_zeros(targets, self.bank_predictions.shape[1])

    def refresh(self, seen: Overview, progress: float) -> None:
        """Fill the banks."""
        self.bank_features[seen.index] = F.normalize(wide(seen.features), dim=1)
        self.bank_predictions[seen.index] = wide(seen.logits).softmax(1)

    def forward(self, batch: Domains, progress: float) -> Step:
        """batch.target.images: [N, C, h, w]; N is this process's share."""
        index = whole_index(batch)
        features, logits = self.predict(batch)
        predictions = logits.softmax(1)
        everyone = gather(predictions)  # [B, K]
        with torch.no_grad():
            unit = F.normalize(features, dim=1)
            found = nearest_rows(unit, self.bank_features, batch.target.index, self.neighbours)
            self.latest = index, gather_equal(unit).flatten(0, 1), everyone.detach()
        near = attraction(predictions, self.bank_predictions[found])
        apart = repulsion(everyone)
        weight = self.dispersion * (1.0 + 10.0 * progress) ** -self.decay
        with torch.no_grad():
            metrics = {
                "attraction": near.detach(),
                "repulsion": apart.detach(),
                "effective_classes": effective_classes(everyone.mean(0)),
            }
        # As a tensor, where this is compiled, progress is in float64.
        return Step(self.trade_off * ((weight * apart).to(near) - near), metrics)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Write the batch's rows, the same on all processes; those of a skipped step stay as they were."""
        if self.latest is None:
            return
        index, features, predictions = self.latest
        self.latest = None
        for bank, rows in ((self.bank_features, features), (self.bank_predictions, predictions)):
            bank[index] = unless_skipped(rows, bank[index], self.skipped)


def nearest_rows(unit: Tensor, bank: Tensor, index: Tensor, count: int) -> Tensor:
    """The rows of the `count` nearest other images by cosine, int64 [N, count]. unit: [N, D]; bank: [M, D]; index: int64 [N], own rows."""
    with torch.autocast(unit.device.type, enabled=False):
        near = (unit @ bank.T).scatter(1, index[:, None], -math.inf)
    return near.topk(count, dim=1).indices


def attraction(predictions: Tensor, theirs: Tensor) -> Tensor:
    """mean_i sum_j S_j p_i. predictions: p [N, K]; theirs: S of the neighbours [N, J, K]."""
    return (theirs * predictions[:, None]).sum((1, 2)).mean()


def repulsion(predictions: Tensor) -> Tensor:
    """mean_i sum_{m != i} p_i p_m, with gradient through both. predictions: p [B, K]."""
    with torch.autocast(predictions.device.type, enabled=False):
        total = predictions.sum(0)
        return (total.square().sum() - predictions.square().sum()) / len(predictions)
