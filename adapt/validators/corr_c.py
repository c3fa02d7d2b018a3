"""Corr-C: how far the predictions of classes exclude each other."""

from __future__ import annotations

import torch

from .candidate import CandidateModel, log_probabilities
from .contract import Validator


class ClassCorrelation(Validator):
    """-tr(C) / ||C||_F of C = P^T P, P = the softmax of the target (Tu et al. 2022, arXiv:2202.06926; as the code of EnsV computes it).

    The original is smallest for the best model, so its sign is turned: from -sqrt(K), certain and balanced, to -1, one class alone.
    """

    name = "corr_c"
    blind_to = "almost everything: as EnsV's code ranks it (smallest first), it prefers a collapsed model to a good one"

    def score(self, candidate: CandidateModel) -> float:
        """Minus the trace over the Frobenius norm."""
        p = log_probabilities(candidate.target.logits).exp()
        c = p.T @ p
        return -float(c.trace() / torch.linalg.matrix_norm(c))
