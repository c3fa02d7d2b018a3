"""What methods of test time share: they meet each target image once, predict it, and learn from it without labels and without a source.

Scales and shifts of normalisation layers learn, all other weights stay. BatchNorm normalises by the batch, as in the first paper of the
kind (Wang et al. 2021, arXiv:2006.10726), and its running statistics are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.distributed import gather_equal
from ...core.errors import UserError
from ...core.method import AdaptMethod, Domains, Step, Unlabelled
from ...core.model.norm import frozen_statistics
from ...core.numerics import wide
from ..adabn import estimate_statistics

if TYPE_CHECKING:
    from ...core.model.classifier import Classifier


class OnlinePredictions(nn.Module):
    """What an online pass predicted: the logits of each image, by its number, written once. Buffers, so that a resumed run has them."""

    logits: Tensor
    written: Tensor

    def __init__(self, images: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.zeros(images, outputs))
        self.register_buffer("written", torch.zeros(images, dtype=torch.bool))

    @torch.no_grad()
    def write(self, index: Tensor, logits: Tensor) -> None:
        """Keep the logits [n, K] of this process's images int64 [n], and those of all others; the first ones of an image stay.

        The images of all processes together differ.
        """
        numbers, rows = gather_equal(index).flatten(), gather_equal(logits.to(self.logits.dtype)).flatten(0, 1)
        self.logits[numbers] = torch.where(self.written[numbers, None], self.logits[numbers], rows)
        self.written[numbers] = True


class Online(AdaptMethod):
    """One pass over the target; derive from it and give `adapt`, the loss of a batch's logits.

    Raises UserError where no scale and shift of a normalisation layer learns.
    """

    rows_per_position = 1
    couples_samples = True  # through BatchNorm
    keeps_head = True
    sees_target = True
    online = True
    uses_pixels = True

    anchor: Tensor

    def __init__(self, classifier: Classifier, chunk: int | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.learned = [p for p in affine_parameters(classifier) if p.requires_grad]
        if not self.learned:
            raise UserError(
                "method: methods of test time learn scales and shifts of BatchNorm and LayerNorm, and this network has none that may "
                "change; take another backbone, or backbone.freeze=none"
            )
        classifier.requires_grad_(False)
        for parameter in self.learned:
            parameter.requires_grad_(True)
        self.register_buffer("anchor", self.flat().detach().clone())

    def flat(self) -> Tensor:
        """All that learns as one vector, [P], with gradient."""
        return torch.cat([parameter.flatten() for parameter in self.learned])

    def train(self, mode: bool = True) -> Any:
        """Training mode is BatchNorm's alone: dropout and the like stay off, since these forwards predict."""
        super().train(False)
        self.training = mode
        for layer in self.modules():
            if isinstance(layer, _BatchNorm):
                layer.training = mode
        return self

    def begin(self, source: Callable[[int, int], Iterable[Tensor]]) -> None:
        """Remember the weights before the pass: the head's are loaded now."""
        self.eval()
        self.anchor.copy_(self.flat().detach())

    def adapt(self, logits: Tensor, target: Unlabelled) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's logits [n, K], float32, and what is worth watching."""
        raise NotImplementedError(f"{type(self).__name__} needs an adapt(logits, target)")

    def predicted(self, logits: Tensor) -> Tensor:
        """What is kept as the prediction of these images: [n, K] -> [n, K]; by default the logits."""
        return logits

    def forward(self, batch: Domains, progress: float) -> Step:
        """batch.target.images: [n, C, h, w], this process's share."""
        logits = self.logits_of(batch.target.images)
        loss, watched = self.adapt(logits, batch.target)
        with torch.no_grad():
            kept = {"index": batch.target.index, "logits": self.predicted(logits.detach())}
            metrics = {"target_entropy": entropy_of(logits.detach()).mean(), **watched}
        return Step(loss, metrics, kept)

    def logits_of(self, images: Tensor) -> Tensor:
        """[n, C, h, w] -> [n, K], float32, normalised by the batch; running statistics stay."""
        with frozen_statistics():
            return wide(self.classifier(images))

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """Write down what was predicted, where the recipe asks for it."""
        if self.predictions is not None:
            self.predictions.write(kept["index"], kept["logits"])

    def conclude(self, target: Iterable[Tensor]) -> None:
        """The exported classifier has the statistics of the whole target (AdaBN), as no batch is there to normalise by."""
        if any(isinstance(layer, _BatchNorm) for layer in self.classifier.modules()):
            estimate_statistics(self.classifier, target)


def affine_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of BatchNorm and LayerNorm, in the order of the modules."""
    kinds = (_BatchNorm, nn.LayerNorm)
    layers = [layer for layer in network.modules() if isinstance(layer, kinds)]
    return [p for layer in layers for p in (layer.weight, layer.bias) if isinstance(p, nn.Parameter)]


def entropy_of(logits: Tensor) -> Tensor:
    """H(softmax) of each row in nats: [n, K] -> [n], from log-softmax, so without a logarithm of 0."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)
