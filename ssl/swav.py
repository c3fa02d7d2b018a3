"""SwAV: each crop predicts the prototypes that the other whole views of its image are assigned to; the assignments use all prototypes
equally (Caron et al. 2020, arXiv:2006.09882).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import MOST_ITERATIONS, check_count, check_fraction, check_positive
from ..core.distributed import all_reduce_sum, gather, rank, world
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.encode import encode, with_local
from ..core.numerics import approach
from .parts.heads import mlp, project
from .parts.prototypes import assignment_metrics, crops_loss, sinkhorn
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone


class SwAV(PretrainMethod):
    """SwAV's training objective on a backbone: swapped prediction of codes (eq. 1 and 2).

    projection: Widths of the projection head, hidden layers first, output last. BatchNorm follows each hidden layer.
    prototypes: Number of prototypes, 2 or more.
    temperature: Temperature of the predictions' softmax, above 0 (tau in eq. 2).
    epsilon: Smoothness of the codes in Sinkhorn-Knopp, above 0 (epsilon in eq. 3).
    iterations: Sinkhorn-Knopp iterations, 1 to 10,000.
    freeze_prototypes: Fraction of the training, from 0 to 1, at the start of which the prototypes are not trained. The default is the
        authors' 313 steps out of 100 epochs.
    queue: Number of features of earlier steps, for each whole view, 0 or more, that join the assignment, for small batches; 0 is without.
    queue_from: Fraction of the training, from 0 to 1, after which the queue is used, once it is full.

    Raises UserError for values outside of these ranges.
    """

    views = 2
    rows_per_position = 2
    takes_local = True
    couples_samples = True  # codes share the prototypes among all samples
    takes_chunk = True
    queue: Tensor

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        projection: tuple[int, ...] = (2048, 128),
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        freeze_prototypes: float = 0.01,
        queue: int = 0,
        queue_from: float = 0.0,
    ) -> None:
        super().__init__()
        for key, value in {"temperature": temperature, "epsilon": epsilon}.items():
            check_positive(key, value, "0.03 to 0.1 is usual")
        for key, value, least in (("prototypes", prototypes, 2), ("queue", queue, 0)):
            if value < least:
                raise UserError(f"method.{key}: expected {least} or more, got {value}")
        check_count("iterations", iterations, 1, MOST_ITERATIONS, "3 is published")
        for key, value in {"freeze_prototypes": freeze_prototypes, "queue_from": queue_from}.items():
            check_fraction(key, value, "0.01 is a hundredth of the training")
        backbone.allow_any_size("swav")
        self.backbone, self.chunk, self.temperature = backbone, chunk, temperature
        self.epsilon, self.iterations = epsilon, iterations
        self.freeze_prototypes, self.queue_from = freeze_prototypes, queue_from
        self.projector = mlp([backbone.feature_dim, *projection], last="linear", key="method.projection")
        self.prototypes = nn.Parameter(nn.Linear(projection[-1], prototypes, bias=False).weight.detach())
        self._normalise_prototypes()
        # All processes hold the same queue, so any of them can write it to a checkpoint.
        self.register_buffer("queue", torch.zeros(self.views, queue, projection[-1]), persistent=queue > 0)

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [2, N, C, h, w]; batch.local: [L, N, C, s, s] or None; N is this process's share."""
        features = encode(self.backbone, batch.images, self.chunk)  # [2, N, D]
        crops = with_local(self.backbone, features, batch.local, self.chunk)
        projected = project(self.projector, crops)  # one forward: BatchNorm sees all crops as one batch
        with torch.autocast(projected.device.type, enabled=False):
            z = F.normalize(projected.to(self.prototypes.dtype), dim=-1)
            logits = F.linear(z, self.prototypes)  # cosines, [2 + L, N, K]
            codes = self.codes(z[: self.views].detach(), logits[: self.views].detach(), progress)
        loss = crops_loss(codes, logits, self.temperature)
        return Step(loss, collapse_metrics(features, z[: self.views]) | assignment_metrics(codes, loss))

    @torch.no_grad()
    def codes(self, z: Tensor, logits: Tensor, progress: float) -> Tensor:
        """The codes of the whole views, [2, N, K]; after the step the new features enter the queue.

        Each view is assigned by itself, among the samples of all processes and the queue. z: [2, N, E], of length 1. logits: [2, N, K].
        """
        n, length = logits.shape[1], self.queue.shape[1]
        if not length:
            return sinkhorn(logits, self.epsilon, self.iterations, all_reduce_sum)
        # Each process takes its part of the queue, so that each queued sample counts once.
        mine = self.queue[:, length * rank() // world() : length * (rank() + 1) // world()]
        used = self.queue[:, -1].any() & (progress >= self.queue_from)
        counted = torch.cat([torch.ones_like(z[..., 0]), used.expand(mine.shape[:2]).to(z.dtype)], 1)
        samples = torch.cat([logits, F.linear(mine, self.prototypes)], 1)
        codes = sinkhorn(samples, self.epsilon, self.iterations, all_reduce_sum, counted)[:, :n]
        entering = gather(z.transpose(0, 1)).transpose(0, 1)
        self.keep_after_step(queue=torch.cat([entering, self.queue], 1)[:, :length])
        return codes

    def frozen(self, progress: float) -> list[nn.Parameter]:
        """The prototypes, at the start of the training, as in the authors' code."""
        return [self.prototypes] if progress < self.freeze_prototypes else []

    def after_step(self, progress: float) -> None:
        """Fill the queue, and scale the prototypes back to length 1, outside of the gradient as in the authors' code."""
        super().after_step(progress)
        self._normalise_prototypes()

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        # Once more after a skipped step would change the last digits.
        approach(self.prototypes, F.normalize(self.prototypes, dim=1), skipped=self.skipped)
