"""Nearest source: whether target images lie near source images that the model has right."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from .candidate import CandidateModel
from .contract import Validator

_ROWS = 1024  # target images whose similarities are in memory at once


class NearestSource(Validator):
    """The share of target images whose nearest held-out source image, by cosine of the features, is predicted rightly.

    After `NearestSourceValidator` of pytorch-adapt, which by default compares softmax predictions instead of features.
    """

    name = "nearest_source"
    needs = ("source", "target")
    blind_to = "target images that lie near a wrong class of the source; where source accuracy is 1, it is always 1"

    def score(self, candidate: CandidateModel) -> float:
        """The share, 0 to 1."""
        source = candidate.held_out
        right = source.logits.argmax(1) == source.labels
        bank = normalize(source.features.double(), dim=1)
        rows = normalize(candidate.target.features.double(), dim=1)
        nearest = torch.cat([(part @ bank.T).argmax(1) for part in rows.split(_ROWS)])
        return float(right[nearest].double().mean())
