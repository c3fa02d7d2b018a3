"""Source validation: accuracy on held-out source images."""

from __future__ import annotations

from .candidate import CandidateModel
from .contract import Validator


class SourceValidation(Validator):
    """Accuracy on labelled source images that were held out from training.

    A hard baseline in the study of a million checkpoints (Musgrave et al. 2022, arXiv:2208.07360).
    """

    name = "source_validation"
    needs = ("source",)
    blind_to = "the target: a model that fails there alone has the same score"

    def score(self, candidate: CandidateModel) -> float:
        """The share of held-out source images that are right."""
        source = candidate.held_out
        return float((source.logits.argmax(1) == source.labels).double().mean())
