"""Few-shot classification on frozen features: the nearest class mean of a handful of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...core.evaluate.cosines import near_one
from .contract import Counts, Features, Fitted, Known
from .few_labels import check_shots, drawn_rows


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Nearest class mean of `shots` images a class (SimpleShot, Wang et al. 2019, arXiv:1911.04623, CL2N).

    Features are centred by the mean of all training features, without labels, and normalised. Nothing is tuned, which a handful of
    labels would not allow. The interval is over draws and test images; details pool them, so supports are `draws` times the test set's.
    The images of a draw are different ones: at most one copy or blend of a picture is among them.

    shots: Different training images a class, 1 or more; each class needs as many.
    draws: Number of random choices of these images over which the score is averaged, 1 to 10,000. One where all are taken.
    taps: Features that are read, by name (`pooled`, `cls`, `mean`, `last4`, `block3`, ...; `layers` for each block or stage); each is
        scored on its own.
    """

    shots: int = 5
    draws: int = 10
    taps: tuple[str, ...] = ("pooled",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tap."""
        return self.taps

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for numbers below 1 and for a class with fewer different images."""
        check_shots(name, self.shots, self.draws, counts)

    def fit(self, train: Known) -> Fitted:
        """The class means of each draw. Scores are similarities (cosines), float32 [draws, M, K]."""
        x = train.features[self.reads[0]].float().cpu()
        centre = x.mean(dim=0)
        rows = drawn_rows(train.keys, train.labels, train.seed, self.shots, self.draws)
        means = normalize(normalize(near_one(x - centre), dim=1)[rows].mean(dim=2), dim=2)

        def scores(features: Features) -> Tensor:
            test = normalize(near_one(features[self.reads[0]].float().cpu() - centre), dim=1)
            return torch.einsum("md,scd->smc", test, means)

        settings = {
            "tap": self.reads[0],
            "scale": "centred by the mean of all training images, then each divided by its norm",
            "shots": self.shots,
            "draws": len(rows),
            "trained": "class means, compared by cosine",
            "chosen": "nothing",
        }
        return Fitted(scores, "similarities", facts={"settings": settings})
