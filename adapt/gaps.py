"""How far apart source and target are for a classifier, before and after the training; no label is read."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..core.evaluate.diagnosis import BatchNormInputs, batchnorm_gap
from ..core.evaluate.domain_gap import ADistance, MMDTest, a_distance, mmd_test
from ..core.images.split import one_of_each

MMD_IMAGES, PERMUTATIONS = 200, 199  # of each domain, and of the test: some milliseconds


class DomainGap(NamedTuple):
    """Three distances of the domains in the same features, those that the head sees, and in the inputs of BatchNorm.

    a_distance: None for too few images. mmd: None for fewer than two of a domain. batchnorm: mean over layers, None without any.
    """

    a_distance: ADistance | None
    mmd: MMDTest | None
    batchnorm: float | None


def domain_gap(
    features: tuple[Tensor, Tensor],
    units: tuple[Tensor, Tensor],
    inputs: tuple[BatchNormInputs, BatchNormInputs],
    seed: int,
) -> DomainGap:
    """The distances. features: of source and target, [N, D] and [M, D]; inputs: what reached BatchNorm.

    units: int64, what a half does not tear, and of which one row is independent of another (`Images.units`).
    """
    source, target = (
        rows[one_of_each(own, seed, MMD_IMAGES).sort().values] for rows, own in zip(features, units, strict=True)
    )
    enough = min(len(source), len(target)) >= 2
    mmd = mmd_test(source, target, seed=seed, permutations=PERMUTATIONS) if enough else None
    reached = [one.statistics() for one in inputs]
    batchnorm = batchnorm_gap(*reached) if reached[0] else None
    return DomainGap(a_distance(*features, *units, seed=seed), mmd, batchnorm)


def gaps_as_result(before: DomainGap | None, after: DomainGap | None) -> dict[str, Any]:
    """Entries of a result's `diagnostics`: each distance before and after; None where it could not be measured."""
    told: dict[str, Any] = {}
    for name in DomainGap._fields:
        found: dict[str, Any] = {"before": before and getattr(before, name), "after": after and getattr(after, name)}
        told[name] = {when: one._asdict() if hasattr(one, "_asdict") else one for when, one in found.items()}
    return told


def gap_words(before: DomainGap | None, after: DomainGap | None) -> str:
    """Both states of the domains in one line for the log; "" where nothing was measured."""
    parts = []
    for name, shown in (("A-distance", _distance_words), ("MMD", _mmd_words), ("BatchNorm gap", _batchnorm_words)):
        words = [shown(gap) for gap in (before, after)]
        if any(words):
            parts.append(f"{name} {words[0] or 'not measured'} before, {words[1] or 'not measured'} after")
    return "; ".join(parts)


def _distance_words(gap: DomainGap | None) -> str:
    found = gap and gap.a_distance
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else ""


def _mmd_words(gap: DomainGap | None) -> str:
    return f"{gap.mmd.value:.3f} (p = {gap.mmd.p:.3f})" if gap and gap.mmd else ""


def _batchnorm_words(gap: DomainGap | None) -> str:
    return f"{gap.batchnorm:.2f}" if gap and gap.batchnorm is not None else ""
