"""LeJEPA: views predict the mean of the whole views, and SIGReg keeps embeddings isotropic Gaussian; without a teacher or stop-gradient
(Balestriero & LeCun 2025, arXiv:2511.08544).

SIGReg depends on the batch through sums over images only. So processes exchange sums of [V, slices, points] numbers instead of
embeddings, and each computes its own share of the cosines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.checks import check_count, check_fraction, check_positive
from ..core.distributed import all_reduce_min, sum_with_gradient, world
from ..core.draws import Draws
from ..core.method import PretrainMethod, Step, Views
from ..core.model.encode import encode, with_local
from ..core.numerics import wide
from .parts.heads import mlp, project
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone

MOST_SLICES = 1_000_000  # of directions and frequencies


def prediction_loss(z: Tensor, whole: int) -> Tensor:
    """Mean squared difference of every view's embedding from the mean of the image's whole views (section 5.1, "L_pred").

    z: [V, N, E]; the first `whole` views are whole ones, the others are local crops. Returns the mean over V, N and E.
    """
    z = wide(z)
    return (z - z[:whole].mean(0)).square().mean()


def characteristic_sums(z: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """N times the empirical characteristic function of the embeddings along each direction, real and imaginary part.

    z: [V, N, E]. directions: [E, K]. t: [T] frequencies. Returns the sums over N of cos and sin, [2, V, K, T].
    """
    with torch.autocast(z.device.type, enabled=False):
        z = wide(z)
        angles = (z @ directions.to(z.dtype))[..., None] * t.to(z.dtype)  # [V, N, K, T]
        return torch.stack([angles.cos().sum(1), angles.sin().sum(1)])


def epps_pulley(sums: Tensor, n: int, t: Tensor) -> Tensor:
    """SIGReg: Epps & Pulley's statistic (1983) of N(0, 1) for each view and direction, averaged (section 4.2.3).

    n times the integral over -t_max..t_max of |phi_n(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the trapezoidal rule.
    sums: [2, V, K, T] of `characteristic_sums` over n samples. t: [T] equidistant frequencies from 0 to t_max; the other half
    is its mirror image.
    """
    t = t.to(sums.dtype)
    gaussian = (-0.5 * t.square()).exp()
    cos, sin = sums / n
    error = (cos - gaussian).square() + sin.square()
    return 2.0 * n * torch.trapezoid(error * gaussian, t, dim=-1).mean()


def random_directions(draws: Draws, dim: int, count: int) -> Tensor:
    """Random directions on the unit sphere, float32 [dim, count], drawn for the first position of `draws`."""
    directions = draws.normal("slices", dim, count)[0]
    return directions / directions.norm(dim=0)


class LeJEPA(PretrainMethod):
    """LeJEPA's training objective: sigreg_weight * SIGReg + (1 - sigreg_weight) * prediction (section 5.1).

    Local crops predict and count as samples like whole views, but they are no targets.

    sigreg_weight: Weight of SIGReg, from 0 to 1 (lambda); the prediction loss has the rest. 0.02 to 0.1 is usual.
    slices: Number of random directions along which SIGReg tests the embeddings, 1 to 1,000,000; each step draws new ones.
    points: Number of frequencies over which SIGReg integrates, 2 to 1,000,000.
    t_max: Largest frequency, above 0; they are equidistant from 0 to it, as in the authors' code (the paper's listing has 17 from -5 to 5).
    projection: Widths of the projection head, hidden layers first, output last. BatchNorm follows each hidden layer.

    Raises UserError for values outside of these ranges.
    """

    views = 2
    rows_per_position = 2
    couples_samples = True
    takes_chunk = True
    takes_local = True

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        sigreg_weight: float = 0.05,
        slices: int = 1024,
        points: int = 17,
        t_max: float = 3.0,
        projection: tuple[int, ...] = (2048, 2048, 64),
    ) -> None:
        super().__init__()
        check_fraction("sigreg_weight", sigreg_weight, "0.02 to 0.1 is usual")
        check_count("slices", slices, 1, MOST_SLICES, "256 to 1024 is usual")
        check_count("points", points, 2, MOST_SLICES, "17 is usual")
        check_positive("t_max", t_max, "3 to 5 is usual")
        backbone.allow_any_size("lejepa")
        self.backbone, self.chunk = backbone, chunk
        self.sigreg_weight, self.slices, self.points, self.t_max = sigreg_weight, slices, points, t_max
        self.projector = mlp([backbone.feature_dim, *projection], last="linear", key="method.projection")

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w] and batch.local: [L, N, C, s, s] or None; N is this process's share."""
        whole = encode(self.backbone, batch.images, self.chunk)  # [2, N, D]
        features = with_local(self.backbone, whole, batch.local, self.chunk)
        # One forward for all views: the head's BatchNorm must not normalise whole views and local crops apart.
        z = project(self.projector, features)  # [2 + L, N, E]
        t = torch.linspace(0.0, self.t_max, self.points, dtype=torch.float64, device=z.device)
        # The directions of a step are drawn for the first position of its batch, which any process may hold.
        first = all_reduce_min(batch.draws.positions.min()[None])
        directions = random_directions(Draws(batch.draws.seed, first, batch.draws.prefix), z.shape[2], self.slices)
        sums = sum_with_gradient(characteristic_sums(z, directions, t))
        sigreg = epps_pulley(sums, z.shape[1] * world(), t)
        prediction = prediction_loss(z, len(whole))
        loss = self.sigreg_weight * sigreg + (1.0 - self.sigreg_weight) * prediction
        metrics = {"sigreg": sigreg.detach(), "prediction": prediction.detach()}
        return Step(loss, metrics | collapse_metrics(whole, z))
