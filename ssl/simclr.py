"""SimCLR: two views of an image attract each other and repel all other images of the batch (Chen et al. 2020, arXiv:2002.05709)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_positive
from ..core.distributed import gather, own_rows, world
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.encode import encode
from ..core.numerics import wide
from .parts.heads import mlp, project
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


def nt_xent(first: Tensor, second: Tensor, temperature: float, rows: slice = slice(None)) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, arXiv:2002.05709, eq. 1).

    first, second: [N, D] projections of two views of the same N images, row i with row i; normalised here.
    rows: the images whose two anchors this process owns (all by default); negatives are always all 2N - 2 others.
    Returns the scalar mean over the 2 * len(rows) anchors. Raises ValueError if N < 2 (no negatives) or shapes differ.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError(f"nt_xent needs two [N, D] with N >= 2, got {tuple(first.shape)} and {tuple(second.shape)}")
    n = len(first)
    with torch.autocast(first.device.type, enabled=False):
        z = F.normalize(wide(torch.cat([first, second])), dim=1)
        own = torch.arange(n, device=z.device)[rows]
        anchors = torch.cat([own, own + n])
        logits = z[anchors] @ z.T / temperature
        logits = logits.scatter(1, anchors[:, None], float("-inf"))  # an anchor is not its own negative
        return F.cross_entropy(logits, torch.cat([own + n, own]))


class SimCLR(PretrainMethod):
    """SimCLR's training objective on a backbone: NT-Xent on projections (eq. 1).

    temperature: Temperature of the softmax over similarities, above 0; 0.1 to 0.5 is usual (tau in eq. 1).
    projection: Widths of the projection head, hidden layers first, output last. BatchNorm follows each hidden layer and, as in the
        authors' code, the output (theirs has no shift there).

    Raises UserError for values outside of these ranges.
    """

    views = 2
    rows_per_position = 2
    couples_samples = True
    takes_chunk = True

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        temperature: float = 0.2,
        projection: tuple[int, ...] = (2048, 128),
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature, "0.1 to 0.5 is usual")
        self.backbone, self.chunk, self.temperature = backbone, chunk, temperature
        self.projector = mlp([backbone.feature_dim, *projection], last="norm", key="method.projection")

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; N is this process's share. Raises UserError for one image in all: no negatives."""
        if batch.images.shape[1] * world() < 2:
            raise UserError("optim.batch_size: simclr needs at least 2 images, the others are an image's negatives")
        features = encode(self.backbone, batch.images, self.chunk)  # [2, N, D]
        first, second = (gather(z) for z in project(self.projector, features))
        loss = nt_xent(first, second, self.temperature, own_rows(batch.images.shape[1]))
        return Step(loss, collapse_metrics(features, torch.stack([first, second])))
