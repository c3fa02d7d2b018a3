"""Transfer Score: clustered target features, certain and diverse predictions, and a head whose classes point apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...core.draws import Draws
from .candidate import CandidateModel, by_content
from .contract import Validator
from .information import InformationMaximisation

SAMPLED = 0.05  # of the target's rows, for Hopkins' statistic (Lawson & Jurs 1990)
_SEED = 0


class TransferScore(Validator):
    """H + IM / ln K - U (Yang et al. 2024, arXiv:2305.18712): Hopkins' statistic of the features, mutual information, uniformity of the
    head.

    U = mean over pairs of classes of |angle(W_i, W_j) - acos(-1 / (K - 1))|. IM is taken over the whole target; the authors' code takes its
    mean over batches. Hopkins' random points come from a fixed seed and its sampled rows from the images' content.
    """

    name = "transfer_score"
    needs = ("target", "weight")
    blind_to = (
        "a permutation of the classes, and confidence that is wrong; H is above 0.9 for nearly any features of many axes, since the random "
        "points fill a box that features hardly fill"
    )

    def score(self, candidate: CandidateModel) -> float:
        """About -2 to 2; not a number for one class, whose information and angles are undefined."""
        if candidate.classes < 2:
            return math.nan
        if candidate.weight is None:
            raise ValueError(f"candidate {candidate.name} has no weights of a linear head")
        information = InformationMaximisation().score(candidate) / math.log(candidate.classes)
        target = candidate.target
        features = target.features[by_content(target.keys, target.features)]
        return hopkins(features) + information - head_uniformity(candidate.weight)


def hopkins(x: Tensor, share: float = SAMPLED) -> float:
    """Hopkins' statistic of [N, D]: sum u / (sum u + sum w), 1/2 for uniform points, near 1 for clusters.

    u: distances from random points in the features' box to their nearest row; w: from sampled rows to their nearest other row. 1/2 where
    all are 0.
    """
    x = x.double()
    count = max(1, int(share * len(x)))
    low, high = x.amin(0), x.amax(0)
    points = Draws(_SEED, torch.arange(count)).uniform("hopkins", x.shape[1]).to(x)
    u = torch.cdist(low + (high - low) * points, x, compute_mode="donot_use_mm_for_euclid_dist").amin(1).sum()
    sampled = Draws(_SEED, torch.zeros(1, dtype=torch.int64)).permutation("rows", len(x))[0, :count].to(x.device)
    away = torch.cdist(x[sampled], x, compute_mode="donot_use_mm_for_euclid_dist")
    away[torch.arange(count), sampled] = torch.inf
    w = away.amin(1).sum() if len(x) > 1 else torch.zeros(())
    return float(u / (u + w)) if float(u + w) else 0.5


def head_uniformity(weight: Tensor) -> float:
    """Mean over pairs of rows of [K, D] of |angle - acos(-1 / (K - 1))|, in radians; 0 for a simplex. K is 2 or more."""
    unit = normalize(weight.double(), dim=1)
    k = len(unit)
    cosine = (unit @ unit.T)[*torch.triu_indices(k, k, offset=1)]
    return float((cosine.clamp(-1.0, 1.0).acos() - math.acos(-1.0 / (k - 1))).abs().mean())
