"""Few-shot ridge regression, big_vision's probe, as a protocol; the solver is in core/evaluate/ridge.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.ridge import L2, fit_ridge
from .contract import Counts, Features, Fitted, Known
from .few_labels import check_shots, drawn_rows

# With less, rounding decides; with more, all scores are 0 in the precision in which they are kept.
SMALLEST_L2, LARGEST_L2 = 1e-12, 1e12


@dataclass(frozen=True, kw_only=True)
class FewShotRidge:
    """Ridge regression from a few images a class to labels of +-1 (big_vision, evaluators/fewshot_lsr.py).

    Features are standardised by the shots, a constant feature 100 is appended, and the penalty is fixed. Nothing is chosen. big_vision
    evaluates with pictures resized to 256 and cropped to 224 px. Each number of shots is scored on its own, as ridge-5shot. The interval is
    over draws and test images.

    shots: Different training images a class, each 1 or more; each class needs as many.
    draws: Number of random choices of these images over which the score is averaged, 1 to 10,000, of which big_vision has three.
        One where all are taken.
    l2: Strength of the penalty, 1e-12 to 1e12; big_vision has 2^10 for every set.
    taps: Features that are read, by name (`pooled`, `cls`, `mean`, `last4`, `block3`, ...; `layers` for each block or stage); each is
        scored on its own.
    """

    shots: tuple[int, ...] = (1, 5, 10, 25)
    draws: int = 3
    l2: float = L2
    taps: tuple[str, ...] = ("pooled",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tap."""
        return self.taps

    def each(self) -> Mapping[str, FewShotRidge]:
        """One for each number of shots. Raises UserError if there is none."""
        if not self.shots:
            raise UserError(
                "evaluate.ridge.shots: an empty list is given; expected one or more numbers, such as [1, 5]"
            )
        return {f"{shots}shot": replace(self, shots=(shots,)) for shots in sorted(set(self.shots))}

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for numbers out of range and for a class with fewer different images."""
        if not SMALLEST_L2 <= self.l2 <= LARGEST_L2:
            raise UserError(
                f"evaluate.ridge.l2: {self.l2} is given; expected {SMALLEST_L2:g} to {LARGEST_L2:g}, such as {L2:g}"
            )
        for shots in self.shots:
            check_shots(name, shots, self.draws, counts, "ridge")

    def fit(self, train: Known) -> Fitted:
        """A classifier for each draw. Scores are similarities to +1, float32 [draws, M, K]."""
        x = train.features[self.reads[0]].to(train.device)
        rows = drawn_rows(train.keys, train.labels, train.seed, self.shots[0], self.draws).flatten(1)
        models = [fit_ridge(x[some], train.labels[some], len(train.classes), [self.l2]) for some in rows]

        def scores(features: Features) -> Tensor:
            test = features[self.reads[0]].to(train.device)
            return torch.stack([model.scores(test)[0].float().cpu() for model in models])

        settings = {
            "tap": self.reads[0],
            "scale": "standardised by the shots; a constant feature of 100 is added",
            "shots": self.shots[0],
            "draws": len(rows),
            "l2": self.l2,
            "optimizer": "closed form, to labels of +-1",
            "chosen": "nothing",
        }
        return Fitted(scores, "similarities", facts={"shots": self.shots[0], "l2": self.l2, "settings": settings})
