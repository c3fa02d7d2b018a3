"""Estimates of the target's accuracy from the confidence on held-out source: ATC and DoC."""

from __future__ import annotations

import torch
from torch import Tensor

from .candidate import CandidateModel, log_probabilities
from .contract import Validator


class AverageThresholdedConfidence(Validator):
    """ATC: the share of target images that are as sure as the right share of the source (Garg et al. 2022, arXiv:2201.04234).

    How sure a prediction is: its negative entropy, the authors' better choice (ATC-NE). The threshold has as large a share of the held-out
    source below it as that has errors; without temperature scaling.
    """

    name = "atc"
    needs = ("source", "target")
    blind_to = (
        "confidence that is wrong on the target alone: a collapsed model that is sure of itself is estimated as right"
    )

    def score(self, candidate: CandidateModel) -> float:
        """The estimated accuracy, 0 to 1."""
        source = candidate.held_out
        wrong = int((source.logits.argmax(1) != source.labels).sum())
        ordered = _negative_entropy(source.logits).sort().values
        threshold = ordered[wrong] if wrong < len(ordered) else torch.tensor(torch.inf)
        return float((_negative_entropy(candidate.target.logits) >= threshold).double().mean())


class DifferenceOfConfidences(Validator):
    """DoC: source accuracy - (mean confidence on source - mean confidence on target) (Guillory et al. 2021, arXiv:2107.03315).

    Confidence is the largest probability, without temperature scaling; clipped to 0..1.
    """

    name = "doc"
    needs = ("source", "target")
    blind_to = (
        "confidence that is wrong on the target alone: a collapsed model that is sure of itself is estimated as right"
    )

    def score(self, candidate: CandidateModel) -> float:
        """The estimated accuracy, 0 to 1."""
        source = candidate.held_out
        right = float((source.logits.argmax(1) == source.labels).double().mean())
        lost = _mean_confidence(source.logits) - _mean_confidence(candidate.target.logits)
        return min(1.0, max(0.0, right - lost))


def _negative_entropy(logits: Tensor) -> Tensor:
    logs = log_probabilities(logits)
    return (logs.exp() * logs).sum(1)


def _mean_confidence(logits: Tensor) -> float:
    return float(log_probabilities(logits).exp().amax(1).mean())
