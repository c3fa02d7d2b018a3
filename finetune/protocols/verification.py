"""Verification on frozen features: whether two test images have the same class, decided by their cosine."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import UserError
from ...core.evaluate.measures import Measured
from ...core.evaluate.verification import verify_pairs
from .contract import Counts, Known, LabelledTest, Measuring

# More would take some gigabytes, and its bootstrap ten minutes.
MOST_PAIRS_OF_IMAGES = 20_000_000


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Pairs of test images: genuine ones have the same class, impostors two. Nothing is trained or chosen, and training images aren't used.

    Two images of one identity are copies, and no pair. Intervals are of a bootstrap over identities: the weight of a pair is the product of
    its images' weights. It takes 20 seconds for a million pairs.

    pairs: The most pairs that are compared, 2 to 20,000,000. Of a set with more, as many are drawn by seed, half of them genuine; where
        there are fewer of one kind than that, all of it is taken, and more of the other. No metric depends on the parts of both kinds.
    far: False acceptance rates at which FRR is given, above 0 and below 1, or a list. Each needs 10 / FAR impostor pairs, else it is left
        out.
    taps: Features that are read, by name (`pooled`, `cls`, `mean`, `last4`, `block3`, ...; `layers` for each block or stage); each is
        measured on its own.
    """

    pairs: int = 1_000_000
    far: float | tuple[float, ...] = (1e-2, 1e-3)
    taps: tuple[str, ...] = ("pooled",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tap."""
        return self.taps

    @property
    def rates(self) -> list[float]:
        """The values of far, descending."""
        values = [self.far] if isinstance(self.far, int | float) else self.far
        return sorted({float(value) for value in values}, reverse=True)

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for numbers out of range, and for a test set without a pair."""
        if not 2 <= self.pairs <= MOST_PAIRS_OF_IMAGES:
            raise UserError(
                f"evaluate.verification.pairs: expected 2 to {MOST_PAIRS_OF_IMAGES:,}, got {self.pairs}; a million "
                "are enough for a FAR of 1e-4"
            )
        if odd := [rate for rate in self.rates if not 0 < rate < 1]:
            raise UserError(f"evaluate.verification.far: expected rates above 0 and below 1, got {odd[0]}")
        for test, keys in counts.tests.items():
            if (different := len(keys.unique())) < 2:
                raise UserError(
                    f"evaluate.verification: {test} has {different} image without its copies, so there is no pair to verify; give a "
                    "test set with more images"
                )

    def fit(self, train: Known) -> Measuring:
        """Nothing of the training images is needed."""

        def measure(test: LabelledTest) -> Measured:
            x = test.features[self.taps[0]]
            more = {"pairs": self.pairs, "far": self.rates, "seed": test.seed, "units": test.units}
            return verify_pairs(x, test.labels, test.keys, **more)

        return Measuring(measure, {"tap": self.taps[0]})
