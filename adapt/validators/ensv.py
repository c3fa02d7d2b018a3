"""EnsV: agreement with the ensemble of all candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .candidate import CandidateModel, log_probabilities
from .contract import Validator


class EnsembleAgreement(Validator):
    """The share of target images on which a candidate agrees with the argmax of the mean softmax of all (EnsV, Hu et al. 2024).

    Raises ValueError where candidates were shown other images.
    """

    name = "ensv"
    blind_to = "what most candidates do wrong alike; with one or two candidates it says nothing"

    def scores(self, candidates: Sequence[CandidateModel]) -> list[float]:
        """The agreements, 0 to 1."""
        if not candidates:
            return []
        orders = [candidate.target.keys.argsort(stable=True) for candidate in candidates]
        keys = candidates[0].target.keys[orders[0]]
        if any(not torch.equal(c.target.keys[order], keys) for c, order in zip(candidates, orders, strict=True)):
            raise ValueError("an ensemble needs candidates that were shown the same target images")
        # Copies have equal identities; they lie in the order that they came in, which must be that of all candidates.
        logits = [c.target.logits[order] for c, order in zip(candidates, orders, strict=True)]
        ensemble = sum((log_probabilities(one).exp() for one in logits), torch.zeros(())).argmax(1)
        return [float((one.argmax(1) == ensemble).double().mean()) for one in logits]
