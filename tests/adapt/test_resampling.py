"""The frequencies of predicted classes and steps that are skipped: a batch of logits that are no numbers moves nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import rootstock.adapt.parts.resampling as resampling
from rootstock.adapt.parts.masked_consistency import MaskedConsistency
from rootstock.adapt.parts.resampling import Resampling
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.model.classifier import Classifier
from rootstock.launch.doctor.equality import CLASSES, domain_pair
from rootstock.launch.doctor.trial_steps import backbone
from rootstock.tests.adapt.exact_steps import KEYS

N = 8
BOTH = sorted(name for name, kind in ADAPT_METHODS.items() if "target" in kind.resamples)
GUESSES = torch.tensor([0, 0, 1])
BAD = (torch.nan, torch.inf, -torch.inf)


def counted() -> Resampling:
    made = Resampling(torch.ones(3))
    made.target(GUESSES)
    return made


def state(made: Resampling) -> list[Tensor]:
    return [made.frequencies.clone(), made.batches.clone()]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", [0, 1])
def test_one_logit_that_is_no_number_leaves_the_frequencies(bad: float, where: int) -> None:
    """In either of two tensors, of any shape; the next finite batch counts as if the bad one had not been."""
    made, plain = counted(), counted()
    logits = [torch.zeros(2, 3, 3), torch.zeros(3, 3)]
    logits[where].view(-1)[4] = bad
    before = state(made)
    weights = made.target(torch.tensor([0, 0, 0]), logits=logits)
    assert all(torch.equal(a, b) for a, b in zip(before, state(made), strict=True))
    torch.testing.assert_close(weights, 1 / (3 * before[0][[0, 0, 0]]))
    finite = [torch.zeros(2, 3, 3), torch.zeros(3, 3)]
    made.target(GUESSES, logits=finite)
    plain.target(GUESSES)
    assert all(torch.equal(a, b) for a, b in zip(state(made), state(plain), strict=True))


def test_a_bad_process_leaves_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process has counts [1, 0, 2], and a logit that is no number in the first of two batches."""
    found: list[Tensor] = []
    for wrong in (1.0, 0.0):
        monkeypatch.setattr(resampling, "all_reduce_sum", lambda own, w=wrong: own + torch.tensor([1.0, 0.0, 2.0, w]))
        made = Resampling(torch.ones(3))
        made.target(GUESSES, logits=[torch.zeros(3, 3)])
        found.append(made.frequencies)
    torch.testing.assert_close(found[0], torch.full((3,), 1 / 3))
    torch.testing.assert_close(found[1], (torch.full((3,), 1 / 3) + torch.tensor([3.0, 1.0, 2.0]) / 6) / 2)


def method_of(name: str, mic: bool) -> Any:
    torch.manual_seed(0)
    made: Any = ADAPT_METHODS[name](
        Classifier(backbone("conv"), [str(k) for k in range(CLASSES)]), **KEYS.get(name, {})
    )
    made.resampling = Resampling(torch.tensor([0.5, 1.0, 1.5]))
    return (MaskedConsistency(made) if mic else made).train()


@pytest.mark.parametrize("domain", ["source", "target"])
@pytest.mark.parametrize(("name", "mic"), [*((name, False) for name in BOTH), ("mcc", True), ("mcd", True)])
def test_a_picture_that_is_no_number_moves_the_frequencies_of_no_method(name: str, mic: bool, domain: str) -> None:
    made = method_of(name, mic)
    batch = domain_pair(made, N, 1, torch.float32)
    several: Any = (0,) if made.turns > 1 else ()
    made(batch, 0.5, *several)
    weights: Resampling = made.resampling
    before = state(weights)
    assert float(before[1]) == 2.0
    images = getattr(batch, domain).images.clone()
    images[3] = torch.nan
    if domain == "source":
        spoilt = batch._replace(sources=(batch.source._replace(images=images),))
    else:
        spoilt = batch._replace(targets=(batch.target._replace(images=images),))
    loss = made(spoilt, 0.5, *several).loss
    assert not loss.isfinite() or several
    assert all(torch.equal(a, b) for a, b in zip(before, state(weights), strict=True))
    made(batch, 0.5, *several)
    assert float(weights.batches) == 3.0 and weights.frequencies.isfinite().all()
