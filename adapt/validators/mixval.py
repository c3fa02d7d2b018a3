"""MixVal: whether a model is consistent between target images and mixtures of two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.draws import Draws
from ...core.evaluate.ranks import mean_ranks
from .candidate import CandidateModel, by_content
from .contract import Validator

SHARE = 0.55  # of the first image: the code's value
_SEED = 0


class MixVal(Validator):
    """Mean of a candidate's ranks by two consistencies on mixed target images (Hu et al. 2023, "Mixed samples as probes for unsupervised
    model selection in domain adaptation", NeurIPS).

    An image x_a is mixed with another, 0.55 x_a + 0.45 x_b, and the mixture should be predicted as x_a is. Once with x_b of the same
    predicted class, which probes how tight the class is, once of another, which probes the boundary between both. The score is the mean
    of both ranks, 1 = worst; equal ones share theirs. The authors pair an image with its mirror image in a batch of 128 of a shuffled
    list; here each has its successor in an order keyed by content, within its predicted class or not, so no pair is lost and none depends
    on batches.
    """

    name = "mixval"
    needs = ("target", "mixed")
    blind_to = (
        "a permutation of the classes; a collapsed model, which is perfectly consistent within its class and has no pair between classes, "
        "if pairs within are counted alone"
    )

    def scores(self, candidates: Sequence[CandidateModel]) -> list[float]:
        """Mean ranks, 1 to the number of candidates. A model that predicts a single class has no boundary, and ranks last there."""
        if not candidates:
            return []
        found = [mixed_consistency(candidate) for candidate in candidates]
        ranks = [mean_ranks([-math.inf if math.isnan(v) else v for v in one]) for one in zip(*found, strict=True)]
        return [float(within + between) / 2 for within, between in zip(*ranks, strict=True)]


def mixed_consistency(candidate: CandidateModel) -> tuple[float, float]:
    """(within, between): shares of mixtures of the same, and of another, predicted class, that are predicted as their first image is.

    NaN where there is no such pair.
    """
    if candidate.mixed is None:
        raise ValueError(f"candidate {candidate.name} cannot be shown mixed images")
    if isinstance(candidate.mixed, tuple):
        return candidate.mixed
    target = candidate.target
    predicted = target.logits.argmax(1).cpu()
    order = _shuffled(target.keys.cpu(), target.features.cpu())
    classes = [order[predicted[order] == k] for k in range(candidate.classes)]
    classes = [rows for rows in classes if len(rows) > 1]
    within = (
        [_consistent(candidate, predicted, torch.cat(classes), torch.cat([r.roll(-1) for r in classes]))]
        if classes
        else []
    )
    first, second = order, order.roll(-1)
    other = predicted[first] != predicted[second]
    between = [_consistent(candidate, predicted, first[other], second[other])] if bool(other.any()) else []
    return (within or [math.nan])[0], (between or [math.nan])[0]


def _consistent(candidate: CandidateModel, predicted: Tensor, first: Tensor, second: Tensor) -> float:
    assert callable(candidate.mixed)
    mixed = candidate.mixed(first, second, SHARE).argmax(1).cpu()
    return float((mixed == predicted[first]).double().mean())


def _shuffled(keys: Tensor, features: Tensor) -> Tensor:
    """Rows in a random order that depends on the images' content alone, the same for all candidates but for copies."""
    ordered = by_content(keys, features)
    return ordered[Draws(_SEED, torch.arange(len(keys))).bits("mixval").argsort(stable=True)]
