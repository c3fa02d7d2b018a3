"""Diversity and information maximisation: predictions that are certain one by one and differ as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from .candidate import CandidateModel, log_probabilities
from .contract import Validator
from .entropy import mean_entropy


class Diversity(Validator):
    """H(mean p) over the target (a term of Krause et al. 2010, "Discriminative clustering by regularized information maximization")."""

    name = "diversity"
    blind_to = "whether a single prediction is right or certain; a model that answers at random has the best score"

    def score(self, candidate: CandidateModel) -> float:
        """The entropy of the mean prediction, in nats."""
        return float(entropy_of_mean(candidate.target.logits))


class InformationMaximisation(Validator):
    """H(mean p) - mean H(p), the mutual information of image and prediction (Krause et al. 2010; SHOT, arXiv:2002.08546, trains it).

    Over the whole target at once: a mean over batches, as in the code of Transfer Score, punishes batches that lack classes.
    """

    name = "im"
    blind_to = (
        "classes that are confused consistently (a permutation of the classes has the same score), confidence that is wrong; it punishes a "
        "target whose classes are not balanced"
    )

    def score(self, candidate: CandidateModel) -> float:
        """The mutual information in nats, 0 to ln K."""
        logits = candidate.target.logits
        return float(entropy_of_mean(logits) - mean_entropy(logits))


def entropy_of_mean(logits: Tensor) -> Tensor:
    """H(mean softmax(logits)) of [N, K], in nats, float64."""
    return torch.special.entr(log_probabilities(logits).exp().mean(0)).sum()
