"""The frequencies of predicted classes and steps that are skipped: such a step moves nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

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


def counted() -> Resampling:
    made = Resampling(torch.ones(3))
    made.target(GUESSES)
    made.after_step(None)
    return made


def state(made: Resampling) -> list[Tensor]:
    return [made.frequencies.clone(), made.batches.clone()]


def test_the_batch_of_a_skipped_step_leaves_the_frequencies() -> None:
    """The next batch counts as if the skipped one had not been; whether the loop calls `after_step` then, as on a GPU, or not."""
    plain = counted()
    plain.target(GUESSES)
    plain.after_step(None)
    for called in (True, False):
        made = counted()
        before = state(made)
        made.target(torch.tensor([0, 0, 0]))
        if called:
            made.after_step(torch.tensor(True))
        assert all(torch.equal(a, b) for a, b in zip(before, state(made), strict=True))
        made.target(GUESSES)
        made.after_step(torch.tensor(False))
        assert all(torch.equal(a, b) for a, b in zip(state(made), state(plain), strict=True))


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
    made.after_step(0.5)
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
    made.skipped = torch.tensor(True)
    made.after_step(0.5)
    made.skipped = None
    assert all(torch.equal(a, b) for a, b in zip(before, state(weights), strict=True))
    made(batch, 0.5, *several)
    made.after_step(0.5)
    assert float(weights.batches) == 3.0 and weights.frequencies.isfinite().all()
