"""Classifiers of one class: every validator has a score or none."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from rootstock.adapt.validators.candidate import CandidateModel, SourceFeatures, SourceOutputs, TargetOutputs
from rootstock.adapt.validators.registry import VALIDATORS
from rootstock.adapt.validators.selection import as_result, choose, score_candidates
from rootstock.tests.adapt.validators.models import generator

UNDEFINED = {"transfer_score"}


def candidate(seed: int, k: int = 1) -> CandidateModel:
    """With all evidence there is; mixed images give the logits of the first."""
    g = generator(seed)
    labels = torch.arange(17) % k
    source = SourceOutputs(
        torch.randn(17, 5, generator=g), torch.randn(17, k, generator=g), labels, torch.arange(100, 117)
    )
    trained = SourceFeatures(torch.randn(31, 5, generator=g), torch.arange(200, 231))
    target = TargetOutputs(torch.randn(23, 5, generator=g), torch.randn(23, k, generator=g), torch.arange(23))
    weight = torch.randn(k, 5, generator=g)
    return CandidateModel(f"c{seed}", seed, target, source, trained, weight, lambda first, _, __: target.logits[first])


@pytest.mark.parametrize("name", VALIDATORS)
@pytest.mark.parametrize("count", [1, 2])
def test_each_validator_scores_candidates_of_one_class(name: str, count: int) -> None:
    scores = VALIDATORS[name].scores([candidate(seed) for seed in range(count)])
    assert len(scores) == count
    assert all(math.isnan(score) if name in UNDEFINED else math.isfinite(score) for score in scores), scores


def test_what_is_undefined_picks_nothing_and_is_null_in_the_result() -> None:
    scoring = score_candidates([candidate(0), candidate(1)])
    told = as_result(scoring, choose(scoring))
    assert told["scores"]["transfer_score"] == [None, None] and "transfer_score" not in told["picks"]
    assert told["rule"]["pick"] == "c1" and "NaN" not in json.dumps(told)


def test_two_classes_have_a_transfer_score() -> None:
    two = candidate(0, k=2)
    assert math.isfinite(VALIDATORS["transfer_score"].score(two))
    with pytest.raises(ValueError, match="candidate c0 has no weights of a linear head"):
        VALIDATORS["transfer_score"].score(dataclasses.replace(two, weight=None))
