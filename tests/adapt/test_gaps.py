"""The distances of the domains: of one row an identity, in the same features, and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rootstock.adapt.examine as examine
from rootstock.adapt.gaps import DomainGap, domain_gap, gap_words, gaps_as_result
from rootstock.core.evaluate.diagnosis import BatchNormInputs
from rootstock.core.evaluate.domain_gap import ADistance, MMDTest, mmd_test
from rootstock.core.images.open import open_images
from rootstock.tests.adapt.test_examine import DATA, DIGITS, start

NONE = (BatchNormInputs(), BatchNormInputs())


def drawn(n: int, shift: float, seed: int) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) + shift


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


def test_the_halves_and_the_rows_are_whole_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run whose sets have groups."""
    asked, measure = list[tuple[torch.Tensor, torch.Tensor]](), examine.domain_gap

    def watched(features: Any, units: Any, *rest: Any) -> DomainGap:
        asked.append(units)
        return measure(features, units, *rest)

    monkeypatch.setattr(examine, "domain_gap", watched)
    images = open_images(f"{DIGITS}#[:60,seed=3]")
    assert images.labels is not None
    lines = ["path,label,patient"]
    for i, label in enumerate(images.labels.tolist()):
        Image.fromarray(images.read(i).permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{label},p{i // 5}")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    target = f"csv:{tmp_path}/all.csv?group=patient"
    start(tmp_path / "run", {}, data={**DATA, "target": target})
    assert [(len(source.unique()), len(target.unique())) for source, target in asked] == [(120, 12)] * 2


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
