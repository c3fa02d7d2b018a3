"""What a validator is: a score of candidates, larger is better, that sees no label of the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from .candidate import CandidateModel

NEEDS = ("target", "source", "trained", "weight", "mixed")  # the fields of `CandidateModel`


class Validator:
    """A score of candidates without target labels; larger is better.

    Scores are float64 sums over whole sets and have no random state: the same evidence, in any order of its rows, gives the same score
    but for rounding. A score may be infinite or not a number where it is undefined; such a candidate is not picked.
    """

    # Its name in configs and results.
    name: ClassVar[str]
    # The parts of a candidate that it reads, of NEEDS.
    needs: ClassVar[tuple[str, ...]] = ("target",)
    # In words: the failures of a model that it cannot see, or that it prefers.
    blind_to: ClassVar[str]

    def score(self, candidate: CandidateModel) -> float:
        """The score of one candidate."""
        raise NotImplementedError(f"{type(self).__name__} needs score or scores")

    def scores(self, candidates: Sequence[CandidateModel]) -> list[float]:
        """The scores of all candidates, in their order. One that compares candidates overrides this instead of `score`."""
        return [self.score(candidate) for candidate in candidates]

    @property
    def compares(self) -> bool:
        """Whether a candidate's score depends on the others: it overrides `scores`."""
        return type(self).scores is not Validator.scores

    def lacks(self, candidates: Sequence[CandidateModel]) -> list[str]:
        """The parts of the evidence that it needs and some candidate does not have."""
        return [need for need in self.needs if not all(candidate.has(need) for candidate in candidates)]
