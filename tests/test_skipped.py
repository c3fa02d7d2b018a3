"""What a skipped step leaves of every method: on a GPU `after_step` is called all the same, and must then change nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from rootstock.adapt.parts.masked_consistency import MaskedConsistency
from rootstock.adapt.parts.resampling import Resampling
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.draws import Draws
from rootstock.core.method import AdaptMethod, Labelled, Method, Overview
from rootstock.core.model import norm
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.core.train.optim import Optim, parameter_groups
from rootstock.finetune.training.averages import EqualAverage, ExponentialAverage
from rootstock.finetune.training.losses import CrossEntropy
from rootstock.finetune.training.objective import FineTune
from rootstock.finetune.training.penalties import SoftThreshold
from rootstock.launch.doctor.equality import CLASSES, domain_pair
from rootstock.launch.doctor.trial_steps import SIZE, backbone, run_steps, views
from rootstock.ssl.registry import PRETRAIN_METHODS
from rootstock.tests.adapt.exact_steps import KEYS
from rootstock.tests.ssl import cases

N = 8
FINETUNED = ("shrink", "ema", "ema copy", "swa")
MIC = ("mic", "mic roid", "mic aad")


def adapted(name: str) -> Method:
    name, _, means = name.partition(" ")  # over several steps
    structure = Structure(extra=ADAPT_METHODS[name].extra_outputs)
    classifier = Classifier(backbone("conv"), [str(k) for k in range(CLASSES)], structure=structure)
    made: Any = ADAPT_METHODS[name](classifier, None, **{**KEYS.get(name, {}), **({"momentum": 0.9} if means else {})})
    if "target" in made.resamples and structure.extra == 0:
        made.resampling = Resampling(torch.ones(CLASSES))
    made.make_room(N)
    if made.refresh_every is not None:
        seen = torch.randn(N, classifier.feature_dim), torch.randn(N, CLASSES)
        made.refresh(Overview(torch.arange(N), *seen), 0.0)
    if made.online:
        made.begin(lambda count, size: [domain_pair(made, N, 0, torch.float32).target.images])
    return made


def finetuned(kind: str) -> Method:
    classifier = Classifier(backbone("conv"), [str(k) for k in range(CLASSES)])
    made = FineTune(classifier, CrossEntropy(torch.ones(CLASSES), 0.0))
    if kind == "shrink":
        groups = parameter_groups(made, Optim(lr=0.1, batch_size=1, duration="9"))  # pyright: ignore[reportArgumentType]
        made.shrink = SoftThreshold(made, groups, lambda _: 0.1, weight=0.5, on="all")
    elif kind == "swa":
        made.averaging = EqualAverage(classifier, 4, 1, 1)
    else:
        options = {"decay": 0.7, "warmup": False, "buffers": "copy" if "copy" in kind else "average"}
        made.averaging = ExponentialAverage(classifier, 4, options)
    return made


def built(name: str) -> tuple[Method, Any]:
    """A method in training mode, after two steps, and a further batch of it."""
    torch.manual_seed(0)
    kind, _, wrapped = name.partition(" ")
    if name in FINETUNED:
        made = finetuned(name)
        images = torch.randn(N, 3, SIZE, SIZE)
        batch: Any = Labelled(images, torch.arange(N) % CLASSES, Draws(0, torch.arange(N)))
    elif name in PRETRAIN_METHODS:
        made = cases.method(name, cases.CASES[name][1][0])
        batch = views(made, N)
    else:
        made = MaskedConsistency(adapted(wrapped or "mcc")) if kind == "mic" else adapted(name)  # pyright: ignore[reportArgumentType]
        batch = domain_pair(made, N, 1, torch.float32)
    norm.convert_batch_norms(made.train(), "batch", 0, made.rows_per_position)
    run_steps(made, [batch, batch])
    return made, batch


def stepped(method: Method, batch: Any) -> None:
    """A forward, as a step has one before it is judged, and weights that have moved since the teachers last followed."""
    for turn in range(method.turns):
        method(batch, 0.5, turn) if method.turns > 1 else method(batch, 0.5)
    norm.commit(norm.layers(method))
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter += 0.01


def state(method: Method) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in method.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


NAMES = [*sorted(PRETRAIN_METHODS), *sorted(ADAPT_METHODS), *MIC, "mic adamatch", *FINETUNED, "adamatch means"]


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_writes_nothing_that_is_kept(name: str) -> None:
    """Only after it the step is judged. What a method remembers is written in `after_step`, and BatchNorm's statistics by the loop."""
    method, batch = built(name)
    before = state(method)
    for turn in range(method.turns):
        method(batch, 0.5, turn) if method.turns > 1 else method(batch, 0.5)
    assert changed(before, state(method)) == []


@pytest.mark.parametrize("name", NAMES)
def test_after_a_skipped_step_nothing_changes_and_after_another_what_always_does(name: str) -> None:
    method, batch = built(name)
    stepped(method, batch)
    usual, other = copy.deepcopy(method), copy.deepcopy(method)
    before, remembers = state(method), bool(method._kept) or getattr(method, "resampling", None) is not None
    method.skipped = torch.tensor(True)
    method.after_step(0.5)
    assert changed(before, state(method)) == []
    usual.after_step(0.5)
    other.skipped = torch.tensor(False)
    other.after_step(0.5)
    assert changed(state(usual), state(other)) == []
    inherited = type(method).after_step in (Method.after_step, AdaptMethod.after_step)
    if not inherited or remembers:
        assert changed(before, state(usual))
