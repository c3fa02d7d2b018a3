"""SND: the density of soft neighbourhoods on the target."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .candidate import CandidateModel, log_probabilities
from .contract import Validator

TEMPERATURE = 0.05  # the paper's
_ROWS = 1024  # of the similarity matrix at a time: 8 MB for a thousand images, never N x N


class SoftNeighborhoodDensity(Validator):
    """Mean entropy of the rows of softmax(U U^T / 0.05), U = softmax predictions of unit length (Saito et al. 2021, arXiv:2108.10860).

    The diagonal is set to -1 / 0.05, as in the authors' code, pytorch-adapt and skada. The repositories of EnsV and MixVal take unit logits
    for U, which is another score.
    """

    name = "snd"
    blind_to = "collapse: a model that predicts one class for everything has the largest score that there is, ln(N - 1)"

    def score(self, candidate: CandidateModel) -> float:
        """The mean entropy in nats."""
        return soft_neighborhood_density(log_probabilities(candidate.target.logits).exp())


def soft_neighborhood_density(p: Tensor, rows: int = _ROWS) -> float:
    """SND of predictions [N, K]. rows: of the similarity matrix in memory at once; it doesn't change the value."""
    unit = normalize(p.double(), dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(unit), rows):
        part = unit[start : start + rows]
        similar = part @ unit.T / TEMPERATURE
        own = torch.arange(len(part))
        similar[own, start + own] = -1 / TEMPERATURE
        logs = similar.log_softmax(1)
        total -= (logs.exp() * logs).sum()
    return float(total) / len(unit)
