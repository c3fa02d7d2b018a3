"""Barlow Twins: the cross-correlation of two views' embeddings becomes the identity (Zbontar et al. 2021, arXiv:2103.03230)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.checks import check_not_negative, check_positive
from ..core.distributed import gather, world
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.encode import encode
from ..core.numerics import wide
from .parts.heads import mlp, project
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone

# Epsilon of the BatchNorm without scale and shift that standardises embeddings in the authors' code.
BATCHNORM_EPSILON = 1e-5


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """The cross-correlation matrix C of eq. 2, [D, D]: each dimension of one view against each of the other, over the batch.

    first, second: [N, D] embeddings of two views of the same N images, row i with row i; standardised here.
    """
    with torch.autocast(first.device.type, enabled=False):
        a, b = (_standardised(wide(z)) for z in (first, second))
        return a.T @ b / len(first)


def _standardised(z: Tensor) -> Tensor:
    variance, mean = torch.var_mean(z, 0, correction=0)
    return (z - mean) * torch.rsqrt(variance + BATCHNORM_EPSILON)


def _diagonal(matrix: Tensor) -> Tensor:
    # torch.diagonal makes torch.compile (2.15) warn.
    return matrix.flatten()[:: len(matrix) + 1]


def on_diagonal(correlation: Tensor) -> Tensor:
    """The invariance term of eq. 1: the sum of (1 - C_ii)^2."""
    return (1.0 - _diagonal(correlation)).square().sum()


def off_diagonal(matrix: Tensor) -> Tensor:
    """The redundancy term of eq. 1, without its weight: the sum of C_ij^2 over i != j, of any square matrix.

    Computed as a difference, because at the published width each copy of the matrix takes a quarter of a gigabyte.
    """
    return matrix.square().sum() - _diagonal(matrix).square().sum()


class BarlowTwins(PretrainMethod):
    """Barlow Twins' training objective on a backbone: scale_loss * (invariance + lambd * redundancy), eq. 1.

    lambd: Weight of the redundancy term, 0 or more (lambda of eq. 1): 0.005 in the paper, 0.0051 in the authors' code.
    projection: Widths of the projector, hidden layers first, output last. BatchNorm follows each hidden layer; the last layer is linear
        without bias.
    scale_loss: Factor of the whole loss, above 0: 0.024 in the authors' code. LARS is blind to it for weights, so it only sets the
        learning rate of biases and norms; their later code has 0.0048 = 0.024 * 0.2 for these.

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
        lambd: float = 0.0051,
        projection: tuple[int, ...] = (8192, 8192, 8192),
        scale_loss: float = 0.024,
    ) -> None:
        super().__init__()
        check_not_negative("lambd", lambd, "0.0051 is the published weight")
        check_positive("scale_loss", scale_loss, "0.024 is the published factor")
        self.backbone, self.chunk, self.lambd, self.scale_loss = backbone, chunk, lambd, scale_loss
        self.projector = mlp([backbone.feature_dim, *projection], last="plain-linear", key="method.projection")

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; N is this process's share. Raises UserError for one image in all: no correlation."""
        if batch.images.shape[1] * world() < 2:
            raise UserError("optim.batch_size: barlow needs at least 2 images to correlate embeddings over")
        features = encode(self.backbone, batch.images, self.chunk)  # [2, N, D]
        first, second = (gather(z) for z in project(self.projector, features))
        correlation = cross_correlation(first, second)
        terms = {"on_diagonal": on_diagonal(correlation), "off_diagonal": off_diagonal(correlation)}
        loss = self.scale_loss * (terms["on_diagonal"] + self.lambd * terms["off_diagonal"])
        watched = {name: term.detach() for name, term in terms.items()}
        return Step(loss, {**collapse_metrics(features, torch.stack([first, second])), **watched})
