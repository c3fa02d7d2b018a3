"""The nearest class mean of all training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...core.evaluate.cosines import near_one
from .contract import Counts, Features, Fitted, Known


@dataclass(frozen=True, kw_only=True)
class NearestMean:
    """Nearest class mean of all training images, by Euclidean distance. Nothing is trained and nothing is chosen.

    A score is the negative squared distance to a class mean, less its mean over the classes, and divided by the training images' mean
    squared distance to the mean of their own class.

    scale: What is done to features before: raw (nothing), l2n (each is divided by its norm) or cl2n (they are centred by the mean of the
        training images, then divided by their norm), as in SimpleShot (Wang et al. 2019, arXiv:1911.04623).
    taps: Features that are read, by name (`pooled`, `cls`, `mean`, `last4`, `block3`, ...; `layers` for each block or stage); each is
        scored on its own.
    """

    scale: Literal["raw", "l2n", "cl2n"] = "raw"
    taps: tuple[str, ...] = ("pooled",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tap."""
        return self.taps

    def requires(self, name: str, counts: Counts) -> None:
        """It can do with any labelled set. A class without training images is never predicted."""

    def fit(self, train: Known) -> Fitted:
        """The class means. Scores are similarities, float64 [M, K]; minus infinity for a class without training images."""
        x = train.features[self.reads[0]].cpu().double()
        centre = x.mean(0) if self.scale == "cl2n" else torch.zeros(x.shape[1]).double()

        def scaled(given: Tensor) -> Tensor:
            given = given.cpu().double() - centre
            return given if self.scale == "raw" else normalize(near_one(given), dim=1)

        x, k = scaled(x), len(train.classes)
        classes, inverse = train.labels.unique(return_inverse=True)
        counts = inverse.bincount(minlength=len(classes))[:, None]
        means = x.new_zeros(len(classes), x.shape[1]).index_add_(0, inverse, x) / counts
        spread = float((x - means[inverse]).square().sum(1).mean()) or 1.0

        def scores(features: Features) -> Tensor:
            near = 2 * scaled(features[self.reads[0]]) @ means.T - means.square().sum(1)
            found = near.new_full((len(near), k), -torch.inf)
            found[:, classes] = (near - near.mean(1, keepdim=True)) / spread
            return found

        settings = {"tap": self.reads[0], "scale": self.scale, "trained": "class means", "chosen": "nothing"}
        return Fitted(scores, "similarities", facts={"scale": self.scale, "settings": settings})
