"""The distances of the domains: of one row an identity, in the same features, and in words."""

from __future__ import annotations

import torch

from rootstock.adapt.gaps import MMD_IMAGES, DomainGap, domain_gap, gap_words, gaps_as_result, one_of_each
from rootstock.core.evaluate.diagnosis import BatchNormInputs
from rootstock.core.evaluate.domain_gap import ADistance, MMDTest, mmd_test

NONE = (BatchNormInputs(), BatchNormInputs())


def drawn(n: int, shift: float, seed: int) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) + shift


def test_one_row_of_each_identity_whatever_the_order() -> None:
    keys = torch.tensor([7, 7, 3, 9, 3, 7])
    assert one_of_each(keys, 0).tolist() == [0, 2, 3]
    many = torch.arange(1000)
    chosen = one_of_each(many, 0)
    assert len(chosen) == MMD_IMAGES and chosen.tolist() != list(range(MMD_IMAGES))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    assert sorted(many[order][one_of_each(many[order], 0)].tolist()) == sorted(chosen.tolist())


def test_copies_do_not_make_alike_domains_look_different() -> None:
    """Four copies of each row, as blends of one picture nearly are: as independent rows they would be far from each other by chance."""
    rows = [drawn(30, 0.0, seed).repeat_interleave(4, 0) for seed in (2, 3)]
    assert mmd_test(*rows, permutations=199).p == 1 / 200
    keys = [torch.arange(30).repeat_interleave(4) + 100 * k for k in (0, 1)]
    found = domain_gap((rows[0], rows[1]), (keys[0], keys[1]), NONE, 0)
    alone = domain_gap((rows[0][::4], rows[1][::4]), (keys[0][::4], keys[1][::4]), NONE, 0)
    assert found.mmd is not None and found.mmd == alone.mmd and found.mmd.p > 0.05
    far = domain_gap((rows[0], rows[1] + 2.0), (keys[0], keys[1]), NONE, 0)
    assert far.mmd is not None and far.mmd.p == 1 / 200 and far.a_distance is not None and far.a_distance.value > 1.0


def test_what_cannot_be_measured_is_none_and_left_out_of_the_words() -> None:
    bare = domain_gap((drawn(1, 0.0, 0), drawn(9, 0.0, 1)), (torch.tensor([1]), torch.arange(9)), NONE, 0)
    assert bare == DomainGap(None, None, None) and gap_words(bare, bare) == gap_words(None, None) == ""
    full = DomainGap(ADistance(1.5, 1.25, 1.75, 0.1, 80, 1.0), MMDTest(0.25, 0.005), 0.5)
    assert gap_words(bare, full) == (
        "A-distance not measured before, 1.50 [1.25, 1.75] after; MMD not measured before, 0.250 (p = 0.005) after; "
        "BatchNorm gap not measured before, 0.50 after"
    )
    told = gaps_as_result(None, full)
    assert told["batchnorm"] == {"before": None, "after": 0.5} and told["mmd"]["after"] == {"value": 0.25, "p": 0.005}
    assert told["a_distance"]["before"] is None and told["a_distance"]["after"]["low"] == 1.25
