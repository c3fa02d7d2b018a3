"""BNM: the nuclear norm of the predictions on the target."""

from __future__ import annotations

import torch

from .candidate import CandidateModel, log_probabilities
from .contract import Validator


class BatchNuclearNorm(Validator):
    """||P||_* / N, P = the softmax of the whole target, [N, K] (Cui et al. 2020, arXiv:2003.12237).

    The sum of the singular values; the authors' code has their mean instead, which is N / min(N, K) times this. Between 1 / sqrt(N), one
    class for everything, and sqrt(min(N, K) / N), certain and balanced.
    """

    name = "bnm"
    blind_to = "a permutation of the classes, and confidence that is wrong; it punishes a target whose classes are not balanced"

    def score(self, candidate: CandidateModel) -> float:
        """The nuclear norm over the number of images."""
        p = log_probabilities(candidate.target.logits).exp()
        return float(torch.linalg.svdvals(p).sum()) / len(p)
