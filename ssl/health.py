"""What is watched in every step, without labels and without waiting for the device: is the representation still one?

A collapsed method answers every image alike (standard deviation 0), or along one direction (rank 1): Chen & He 2021
(arXiv:2011.10566, section 4.1), Jing et al. 2022 (arXiv:2110.09348).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_STD = 0.02
LEAST_RANK = 1.05


@torch.no_grad()
def health(features: Tensor, embeddings: Tensor | None = None) -> dict[str, Tensor]:
    """Scalars for `Step.metrics`.

    features: [V, N, D] or [N, D] of the backbone. embeddings: [V, N, E], what the loss compares, of all processes or of this one.
    feature_std, embedding_std: sqrt(D) times the mean over dimensions of the standard deviation over images, after scaling each to
    length 1: 1 where they point evenly everywhere, 0 where all are the same. feature_rank, embedding_rank: the participation
    ratio (sum l)^2 / sum l^2 of the eigenvalues l of their covariance: how many dimensions they use. positive_cosine: the mean
    cosine of the embeddings of the first two views.
    """
    found = _spread("feature", features)
    if embeddings is not None:
        found |= _spread("embedding", embeddings)
        if len(embeddings) > 1:
            found["positive_cosine"] = F.cosine_similarity(embeddings[0].float(), embeddings[1].float(), dim=-1).mean()
    return found


def _spread(name: str, x: Tensor) -> dict[str, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        rows = F.normalize(x.flatten(0, -2).float(), dim=1)
        if len(rows) < 3:  # a micro-batch of one or two images has no spread, or one direction, by construction
            return {}
        rows = rows - rows.mean(0)
        power = rows.square().sum()
        small = (
            rows.T @ rows if rows.shape[1] < len(rows) else rows @ rows.T
        )  # the same eigenvalues, the smaller matrix
        # A tiny number instead of 0/0 where all rows are one.
        rank = power.square() / small.square().sum().clamp(min=1e-20)
        return {f"{name}_std": rows.std(0).mean() * rows.shape[1] ** 0.5, f"{name}_rank": rank}


class CollapseAlarm:
    """Reads the logged rows of a run and says, once, in words, when the representation has collapsed.

    It looks at `embedding_*` and `feature_*` of `health`, and waits for two rows in a row: a single batch may be odd.
    """

    def __init__(self) -> None:
        self.before: str | None = None
        self.told = False

    def __call__(self, step: int, row: Mapping[str, float]) -> str | None:
        """The sentence, or None while all is well or after it was said."""
        found = _collapsed(row)
        certain = found is not None and self.before is not None
        self.before = found
        if not certain or self.told:
            return None
        self.told = True
        return (
            f"the representation has collapsed by step {step}: {found}; training on will hardly mend it. Lower optim.lr, "
            "lengthen optim.warmup, and look at the method's own guards (temperature, momentum, stop-gradient, BatchNorm in the heads)"
        )


def _collapsed(row: Mapping[str, float]) -> str | None:
    """What has collapsed, in words."""
    for name in ("embedding", "feature"):
        spread, rank = row.get(f"{name}_std"), row.get(f"{name}_rank")
        if spread is not None and spread < LEAST_STD:
            return f"all images get nearly the same {name} ({name}_std {spread:.2g})"
        if rank is not None and rank < LEAST_RANK:
            return f"{name}s of all images lie along one direction ({name}_rank {rank:.3g})"
    return None
