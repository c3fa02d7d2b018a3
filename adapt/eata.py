"""EATA: TENT on certain images that bring something new, held near the source's weights (Niu et al. 2022, arXiv:2204.02610)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_count, check_fraction, check_not_negative, check_positive
from ..core.distributed import all_reduce_sum, world
from ..core.errors import UserError
from ..core.method import Unlabelled
from ..core.numerics import wide
from .adabn import statistics_by_batch
from .parts.online import Online, entropy_of

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier

FISHER_BATCH = 64  # images of one squared gradient at most: the authors have 64, and here all batches are alike in size
MOST_IMAGES = 1_000_000


class EATA(Online):
    """The entropy of chosen images, each weighted by exp(E0 - H), and a penalty on weights that matter on the source (section 4).

    An image is chosen if its entropy H is below E0 = margin * ln K, and its prediction's cosine to the running mean of chosen predictions
    is below `similar` in size. With no chosen image in the batch no weight moves. The mean and the number of chosen images are
    those of all processes. F, the importance of a weight, is the mean square of its gradient of the cross-entropy to the
    own prediction, over batches of at most 64 source images. The authors' code has ln(1000) / 2 - 1 as the default of E0, and 0.4 ln 1000
    in the script of the paper's tables, as here.

    margin: E0 as a part of ln K, above 0; 0.4 in the paper.
    similar: Largest cosine, from 0 to 1: 0.05 on ImageNet, 0.4 on CIFAR-10.
    fisher: Weight of the penalty, 0 or more: 2000 on ImageNet, 1 on CIFAR-10; `none` leaves it out and needs no source images (the authors
        call it ETA).
    fisher_images: Source images on which F is measured, 1 or more; 2000 in the paper.
    decay: What the running mean keeps at each batch, from 0 to 1; 0.9 in the paper.

    Raises UserError for values outside of these ranges.
    """

    importance: Tensor
    mean: Tensor
    started: Tensor

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        margin: float = 0.4,
        similar: float = 0.05,
        fisher: float | Literal["none"] = 2000.0,
        fisher_images: int = 2000,
        decay: float = 0.9,
    ) -> None:
        super().__init__(classifier, chunk)
        check_positive("margin", margin, "0.4 is the published one")
        check_fraction("similar", similar, "0.05 is the published one on ImageNet")
        check_fraction("decay", decay, "0.9 is the published one")
        check_count("fisher_images", fisher_images, 1, MOST_IMAGES, "2000 is the published number")
        self.weight = 0.0 if fisher == "none" else float(fisher)
        check_not_negative("fisher", self.weight, "2000 is the published one on ImageNet, and none leaves it out")
        self.similar, self.images, self.decay = similar, fisher_images, decay
        outputs = len(classifier.outputs)
        self.largest = margin * math.log(outputs)  # E0
        self.register_buffer("importance", torch.zeros_like(self.anchor))
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.none_chosen = torch.zeros((), dtype=torch.bool)

    def begin(self, source: Callable[[int, int], Iterable[Tensor]]) -> None:
        """Measure F; the same on every process, each on all images."""
        super().begin(source)
        if not self.weight:
            return
        total, batches = torch.zeros_like(self.importance), 0
        with statistics_by_batch(self.classifier), torch.enable_grad():
            for images in source(self.images, FISHER_BATCH):
                logits = wide(self.classifier(images))
                found = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), self.learned)
                total += torch.cat([gradient.flatten() for gradient in found]).square()
                batches += 1
        if not batches:
            raise UserError("method.fisher: needs source images; give data.source, or fisher: none")
        self.importance.copy_(total / batches)

    def adapt(self, logits: Tensor, target: Unlabelled) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted entropy of the chosen images of all processes, and the penalty."""
        entropy, p = entropy_of(logits), logits.detach().softmax(1)
        with torch.no_grad():
            sure = entropy < self.largest
            new = (F.cosine_similarity(p, self.mean[None].to(p)).abs() < self.similar) | ~self.started
            chosen = (sure & new).to(p)
            sums = all_reduce_sum(torch.cat([(p * chosen[:, None]).sum(0), chosen.sum()[None], sure.to(p).sum()[None]]))
            count, total = sums[-2], len(p) * world()
            self.none_chosen = count == 0
            if self.training:
                self._remember(sums[:-2] / count.clamp(min=1), count)
            factor = (self.largest - entropy).exp() * chosen
        loss = (factor * entropy).sum() * (world() / count.clamp(min=1))
        if self.weight:
            loss = loss + self.weight * (self.importance * (self.flat() - self.anchor).square()).sum()
        return loss, {"chosen": count / total, "certain": sums[-1] / total}

    def _remember(self, found: Tensor, count: Tensor) -> None:
        """Move the running mean towards the mean prediction of the chosen images after the step; a batch of NaN moves nothing."""
        moved = torch.where(self.started, self.decay * self.mean + (1 - self.decay) * found, found.to(self.mean))
        use = (count > 0) & moved.isfinite().all()
        self.keep_after_step(mean=torch.where(use, moved, self.mean), started=self.started | use)

    def frozen(self, progress: float) -> Iterator[nn.Parameter]:
        """Everything, where no image was chosen."""
        if bool(self.none_chosen):
            yield from self.learned
