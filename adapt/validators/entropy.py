"""The entropy of predictions on the target."""

from __future__ import annotations

from torch import Tensor

from .candidate import CandidateModel, log_probabilities
from .contract import Validator


class Entropy(Validator):
    """-mean H(p) over the target, p = softmax of the logits (Morerio et al. 2018, arXiv:1711.10288).

    The repositories of SND, MixVal and EnsV add 1e-5 within the logarithm; here it is exact (log softmax in float64).
    """

    name = "entropy"
    blind_to = (
        "confidence that is wrong; it prefers a collapsed model, which predicts one class for everything with certainty"
    )

    def score(self, candidate: CandidateModel) -> float:
        """Minus the mean entropy in nats."""
        return -float(mean_entropy(candidate.target.logits))


def mean_entropy(logits: Tensor) -> Tensor:
    """mean H(softmax(logits)) over the rows of [N, K], in nats, float64."""
    logs = log_probabilities(logits)
    return -(logs.exp() * logs).sum(1).mean()
