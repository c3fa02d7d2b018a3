"""The last iterate: no selection at all, the row that every other validator is compared with."""

from __future__ import annotations

from .candidate import CandidateModel
from .contract import Validator


class LastIterate(Validator):
    """The candidate of the latest step."""

    name = "last"
    needs = ()
    blind_to = "everything: it looks at no output"

    def score(self, candidate: CandidateModel) -> float:
        """Its step."""
        return float(candidate.step)
