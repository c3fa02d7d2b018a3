"""VICReg: views agree, while each dimension keeps its variance and no two correlate (Bardes et al. 2022, arXiv:2105.04906)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_not_negative
from ..core.distributed import gather, world
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.encode import encode
from ..core.numerics import wide
from .barlow import off_diagonal
from .parts.heads import mlp, project
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone

VARIANCE_EPSILON = 1e-4  # epsilon of eq. 2


def invariance(first: Tensor, second: Tensor) -> Tensor:
    """s(Z, Z'), eq. 5: the mean squared difference of [N, D] and [N, D].

    The mean is over rows and dimensions, as in the authors' code; eq. 5 sums over dimensions, which is D times as much.
    """
    with torch.autocast(first.device.type, enabled=False):
        return F.mse_loss(wide(first), wide(second))


def variance(z: Tensor) -> Tensor:
    """v(Z), eq. 1 and 2: by how much the standard deviation of a dimension of [N, D] falls short of 1, averaged over dimensions."""
    with torch.autocast(z.device.type, enabled=False):
        z = wide(z)
        return F.relu(1.0 - (z.var(0) + VARIANCE_EPSILON).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """c(Z), eq. 3 and 4: the squared covariances of different dimensions of [N, D], summed and divided by D."""
    with torch.autocast(z.device.type, enabled=False):
        z = wide(z)
        centred = z - z.mean(0)
        return off_diagonal(centred.T @ centred / (len(z) - 1)) / z.shape[1]


class VICReg(PretrainMethod):
    """VICReg's training objective on a backbone: the weighted sum of three terms (eq. 6).

    As in the authors' code the variance term is the mean of both views' and the covariance term their sum.

    invariance: Weight of the invariance term, 0 or more (lambda in eq. 6).
    variance: Weight of the variance term, 0 or more (mu in eq. 6).
    covariance: Weight of the covariance term, 0 or more (nu in eq. 6).
    projection: Widths of the expander, hidden layers first, output last. BatchNorm follows each hidden layer; the last layer is linear
        without bias.

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
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        projection: tuple[int, ...] = (8192, 8192, 8192),
    ) -> None:
        super().__init__()
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        for name, weight in self.weights.items():
            check_not_negative(name, weight, "25, 25 and 1 are the published ones")
        self.backbone, self.chunk = backbone, chunk
        self.projector = mlp([backbone.feature_dim, *projection], last="plain-linear", key="method.projection")

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; N is this process's share. Raises UserError for one image in all: no variance."""
        if batch.images.shape[1] * world() < 2:
            raise UserError("optim.batch_size: vicreg needs at least 2 images to have a variance")
        features = encode(self.backbone, batch.images, self.chunk)  # [2, N, D]
        first, second = (gather(z) for z in project(self.projector, features))
        terms = {
            "invariance": invariance(first, second),
            "variance": (variance(first) + variance(second)) / 2.0,
            "covariance": covariance(first) + covariance(second),
        }
        loss = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()
        watched = {name: term.detach() for name, term in terms.items()}
        return Step(loss, {**collapse_metrics(features, torch.stack([first, second])), **watched})
