"""RankMe of the target's features."""

from __future__ import annotations

from ...core.evaluate.spectrum import rankme
from .candidate import CandidateModel
from .contract import Validator


class TargetRank(Validator):
    """The effective rank of the target's features: exp of the entropy of their singular values (Garrido et al. 2023, arXiv:2210.02885,
    eq. 1).

    A check of health rather than a ranking: it was made for self-supervised features of one method.
    """

    name = "rankme"
    blind_to = "the head and all classes; noise in the features raises it, and well separated classes lower it"

    def score(self, candidate: CandidateModel) -> float:
        """1 to min(N, D)."""
        return rankme(candidate.target.features)
