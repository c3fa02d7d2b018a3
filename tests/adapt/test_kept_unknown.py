"""What keeps the head of an OSBP run has its output for unknown images too: every method trains with it, and label shift refuses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rootstock.adapt.mdd import MDD
from rootstock.adapt.parts.resampling import Resampling
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.adapt.shift import check_label_shift
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import AdaptMethod, Domains, Labelled, Overview, Unlabelled
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.launch.doctor.trial_steps import SIZE, backbone
from rootstock.tests.adapt.test_objective import start

CLASSES, IMAGES = 4, 8
KEEPERS = sorted(set(ADAPT_METHODS) - {"osbp"})
CORRECTED = (
    "label_shift.correct: the classifier of {} has an output for unknown images, whose prior no estimate has; use none"
)
RESAMPLED = (
    "label_shift.resample: the classifier of {} has an output for unknown images, whose prior no weights make equal; "
    "use none, or keep another head"
)


def batch() -> Domains:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, IMAGES, 3, SIZE, SIZE, generator=generator)
    labels = torch.arange(IMAGES) % CLASSES
    draws = [Draws(0, torch.arange(IMAGES), prefix=f"{domain}/") for domain in ("source", "target")]
    rows = torch.arange(IMAGES)
    source = Labelled(images[0], labels, draws[0], (images[2],))
    return Domains.of(source, Unlabelled(images[1], draws[1], rows, (images[3],)))


def kept(name: str, called_unknown: float = 0.5) -> AdaptMethod:
    """The method around a head of K + 1 outputs, which calls about this part of all images unknown."""
    torch.manual_seed(0)
    classifier = Classifier(backbone("conv"), [str(k) for k in range(CLASSES)], structure=Structure(extra=1))
    given = batch()
    with torch.no_grad():
        logits = classifier(torch.cat([given.source.images, given.target.images]))
        gap = logits[:, :CLASSES].amax(1) - logits[:, CLASSES]
        classifier.head.bias[CLASSES] += gap.quantile(called_unknown)
    made: Any = ADAPT_METHODS[name]
    method: AdaptMethod = made(classifier, None)
    method.make_room(IMAGES)
    return method


@pytest.mark.parametrize("name", KEEPERS)
def test_it_learns_where_images_of_both_domains_are_called_unknown(name: str) -> None:
    method, given = kept(name), batch()
    shown = torch.cat([given.source.images, given.target.images])
    with torch.no_grad():
        called: Tensor = method.classifier.eval()(shown).argmax(1) == CLASSES
    assert called[:IMAGES].any() and called[IMAGES:].any()
    if method.refresh_every is not None:
        with torch.no_grad():
            features = method.classifier.features(given.target.images)
            method.refresh(Overview(torch.arange(IMAGES), features, method.classifier.head(features)), 0.0)
    method.train()
    for turn in range(method.turns):
        step: Any = method(given, 0.5, turn) if method.turns > 1 else method(given, 0.5)
        step.loss.backward()
        assert step.loss.isfinite()
    assert method.classifier.head.out_features == CLASSES + 1


def test_the_adversary_of_mdd_has_the_outputs_of_the_main_head() -> None:
    method = kept("mdd")
    assert isinstance(method, MDD) and method.adversary[2].out_features == CLASSES + 1
    one = Classifier(backbone("conv"), ["only"], structure=Structure(extra=1))
    with pytest.raises(
        UserError, match="mdd needs at least 2 classes, as its heads disagree about them; the source has 1"
    ):
        MDD(one)


@pytest.mark.parametrize("name", sorted(ADAPT_METHODS))
def test_label_shift_is_refused_before_the_training(name: str) -> None:
    method, usual = kept(name), {"resample": "none", "correct": "none", "resamples": 100}
    check_label_shift(usual, method)
    for correct in ("bbse", "mlls"):
        with pytest.raises(UserError) as error:
            check_label_shift({**usual, "correct": correct}, method)
        assert str(error.value) == CORRECTED.format(type(method).__name__)
    section = {**usual, "resample": "pseudo-labels"}
    if "target" in method.resamples:
        with pytest.raises(UserError) as error:
            check_label_shift(section, method)
        assert str(error.value) == RESAMPLED.format(type(method).__name__)
    else:
        check_label_shift(section, method)


@pytest.mark.parametrize("name", ["source_only", "osbp", "adabn"])
def test_source_images_are_weighted_whatever_the_head_is(name: str) -> None:
    method, given = kept(name), batch()
    method.resampling = Resampling(torch.tensor([0.5, 1.0, 1.0, 1.5]))
    method(given, 0.5).loss.backward()
    assert method.classifier.head.weight.grad is not None


def test_runs_that_begin_with_the_classifier_of_osbp(tmp_path: Path) -> None:
    """The sections are refused before anything is trained; without them the runs end."""
    start(tmp_path / "osbp", "osbp", "optim.duration=0", evaluate=None)
    begun: dict[str, Any] = {"backbone": {"weights": str(tmp_path / "osbp" / "run")}, "evaluate": None}
    for name, resampled in (("adabn", False), ("shot", False), ("dann", True), ("mdd", True)):
        method = {"name": name, **({} if ADAPT_METHODS[name].keeps_head else {"keep_head": True})}
        kind = ADAPT_METHODS[name].__name__
        with pytest.raises(UserError) as error:
            start(tmp_path / name, method, "label_shift.correct=bbse", **begun)
        assert str(error.value) == CORRECTED.format(kind)
        if resampled:
            with pytest.raises(UserError) as error:
                start(tmp_path / name, method, "label_shift.resample=pseudo-labels", **begun)
            assert str(error.value) == RESAMPLED.format(kind)
        assert not (tmp_path / name / "run" / "result.json").exists()
        result = start(tmp_path / name, method, "optim.duration=1", **begun)
        assert 0.0 <= result["metrics"]["test/classifier/accuracy"] <= 1.0
