"""What is watched in every step, without labels and without waiting for the device: is the representation still one?

A collapsed method answers every image alike (standard deviation 0), or along one direction (rank 1): Chen & He 2021
(arXiv:2011.10566, section 4.1), Jing et al. 2022 (arXiv:2110.09348).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def health(features: Tensor, embeddings: Tensor | None = None) -> dict[str, Tensor]:
    """Scalars for `Step.metrics`.

    features: [V, N, D] or [N, D] of the backbone. embeddings: [V, N, E], what the loss compares, of all processes or of this one.
    feature_std, embedding_std: sqrt(D) times the mean over dimensions of the standard deviation over images, after scaling each to
    length 1: 1 where they point evenly everywhere, 0 where all are the same. feature_rank, embedding_rank: the participation
    ratio (sum l)^2 / sum l^2 of the eigenvalues l of their covariance: how many dimensions they use. alignment: the mean cosine
    of the embeddings of the first two views.
    """
    found = _spread("feature", features)
    if embeddings is not None:
        found |= _spread("embedding", embeddings)
        if len(embeddings) > 1:
            found["alignment"] = F.cosine_similarity(embeddings[0].float(), embeddings[1].float(), dim=-1).mean()
    return found


def _spread(name: str, x: Tensor) -> dict[str, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        rows = F.normalize(x.flatten(0, -2).float(), dim=1)
        rows = rows - rows.mean(0)
        power = rows.square().sum()
        small = (
            rows.T @ rows if rows.shape[1] < len(rows) else rows @ rows.T
        )  # the same eigenvalues, the smaller matrix
        # A tiny number instead of 0/0 where all rows are one.
        rank = power.square() / small.square().sum().clamp(min=1e-20)
        return {f"{name}_std": rows.std(0).mean() * rows.shape[1] ** 0.5, f"{name}_rank": rank}
