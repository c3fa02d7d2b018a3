"""A batch of one image: what normalises it without statistics says so in a sentence, and what needs none trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rootstock.adapt.parts.masked_consistency import MaskedConsistency
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.errors import UserError
from rootstock.core.method import AdaptMethod, Overview
from rootstock.core.model import norm
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.domains import BatchNorms
from rootstock.core.model.heads import Structure
from rootstock.launch.doctor.equality import CLASSES, domain_pair
from rootstock.launch.doctor.trial_steps import backbone
from rootstock.tests.adapt.test_objective import start

TOO_FEW = (
    "optim.batch_size: BatchNorm needs at least 2 images at once in training, and here it gets 1; "
    "give at least 2 for each process and micro-batch"
)


def made_of(name: str, batchnorm: BatchNorms = "joint", mic: bool = False, width: int | None = 5) -> AdaptMethod:
    torch.manual_seed(0)
    structure = Structure(bottleneck=width, extra=ADAPT_METHODS[name].extra_outputs)
    classifier = Classifier(
        backbone("conv"), [str(k) for k in range(CLASSES)], structure=structure, batchnorm=batchnorm
    )
    made: Any = ADAPT_METHODS[name](classifier)
    made.make_room(4)
    if made.refresh_every is not None:
        made.refresh(Overview(torch.arange(4), torch.randn(4, classifier.feature_dim), torch.randn(4, CLASSES)), 0.0)
    made = MaskedConsistency(made) if mic else made
    norm.configure(made, "auto", accumulate=1, chunk=None, log=print)
    return made.train()


def stepped(made: AdaptMethod, images: int) -> torch.Tensor:
    batch: Any = domain_pair(made, images, 1, torch.float32)
    several: Any = (0,) if made.turns > 1 else ()
    return made(batch, 0.5, *several).loss


@pytest.mark.parametrize(
    ("name", "batchnorm", "mic"),
    [
        ("dann", "apart", False),
        ("dann", "own", False),
        ("mcd", "apart", False),
        ("mcc", "joint", True),
        ("source_only", "joint", False),
        ("shot", "joint", False),
    ],
)
def test_a_bottleneck_that_sees_one_image_is_refused(name: str, batchnorm: BatchNorms, mic: bool) -> None:
    made = made_of(name, batchnorm, mic)
    with pytest.raises(UserError) as error:
        stepped(made, 1)
    assert str(error.value) == TOO_FEW
    assert stepped(made_of(name, batchnorm, mic), 2).isfinite()


@pytest.mark.parametrize(
    ("name", "batchnorm", "width"), [("dann", "joint", 5), ("dann", "apart", None), ("shot", "joint", None)]
)
def test_what_sees_two_numbers_a_channel_takes_one_image(name: str, batchnorm: BatchNorms, width: int | None) -> None:
    """One of each domain together, or maps larger than a point."""
    assert stepped(made_of(name, batchnorm, width=width), 1).isfinite()


def test_a_micro_batch_and_a_group_of_one_are_refused_too() -> None:
    made = made_of("source_only")
    norm.convert_batch_norms(made, "group", 1, 1)
    with pytest.raises(UserError) as error:
        stepped(made, 4)
    sentence = "backbone.norm: BatchNorm needs at least 2 rows at once, and group:1 gives it 1; choose larger groups"
    assert str(error.value) == sentence
    norm.convert_batch_norms(made, "group", 2, 1)
    assert stepped(made, 4).isfinite()


def test_a_run_ends_in_the_sentence(tmp_path: Path) -> None:
    method = {"name": "source_only", "bottleneck": 4}
    with pytest.raises(UserError) as error:
        start(tmp_path / "one", method, "optim.batch_size=1", evaluate=None)
    assert str(error.value) == TOO_FEW
    with pytest.raises(UserError) as error:
        start(tmp_path / "parts", method, "optim.batch_size=4", "run.accumulate=4", evaluate=None)
    assert str(error.value) == TOO_FEW
    start(tmp_path / "two", method, "optim.batch_size=4", "run.accumulate=2", evaluate=None)
