"""TENT: at test time, predictions are made more certain by the affine parameters of normalisation (Wang et al. 2021, arXiv:2006.10726)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..core.method import Unlabelled
from .parts.online import Online, entropy_of

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier


class TENT(Online):
    """The mean entropy of the batch's predictions, in one pass over the target (section 3).

    An image's prediction is that of the forward that adapts, before its update. The paper's rates: ImageNet SGD 0.00025 with momentum 0.9
    and 64 images; CIFAR Adam 0.001 and 200 images. They were chosen on ImageNet-C and CIFAR-10-C; the stream chooses none.
    """

    def __init__(self, classifier: Classifier, chunk: int | None = None) -> None:
        super().__init__(classifier, chunk)

    def adapt(self, logits: Tensor, target: Unlabelled) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean entropy."""
        return entropy_of(logits).mean(), {}
