"""What source-free methods share: a trained classifier goes on learning on target images alone. The batch still has a source, which
they neither encode nor read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ...core.distributed import gather_equal
from ...core.errors import UserError
from ...core.method import AdaptMethod, Domains
from ...core.model.domains import TARGET
from ...core.numerics import wide

if TYPE_CHECKING:
    from ...core.model.classifier import Classifier


class SourceFree(AdaptMethod):
    """Starts from the classifier of `backbone.weights`, head included."""

    rows_per_position = 1  # of the target; no source image is encoded
    couples_samples = True
    takes_chunk = True
    keeps_head = True
    sees_target = True

    def __init__(self, classifier: Classifier, chunk: int | None) -> None:
        super().__init__()
        self.classifier, self.chunk = classifier, chunk

    def predict(self, batch: Domains) -> tuple[Tensor, Tensor]:
        """This process's target images: features [N, D], as the head sees them, and logits [N, K]. Float32 or float64."""
        features = self.classifier.encode(batch.target.images[None], self.chunk, (TARGET,))[0]
        return wide(features), wide(self.classifier.head(features))


def whole_index(batch: Domains) -> Tensor:
    """int64 [B]: the rows of the target that a batch holds, on all processes in the order of ranks. Raises UserError if it says none."""
    target = batch.target
    if len(target.index) != len(target.images):
        raise UserError(
            f"this method needs the index of each target image, and the batch has {len(target.index)} for {len(target.images)} images; "
            "give Unlabelled(images, draws, index)"
        )
    return gather_equal(target.index).flatten()
