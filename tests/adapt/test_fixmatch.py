"""FixMatch against loops; what counts, what it is divided by, and where its gradient goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rootstock.adapt.fixmatch import FixMatch, consistency, pseudo_labels
from rootstock.core.errors import UserError
from rootstock.core.method import AdaptMethod, Domains
from rootstock.core.registration import register
from rootstock.launch.doctor.equality import classifier, domain_pair
from rootstock.tests.adapt.one_update import PEERS, drawn, gradient_norms


def built(**keys: Any) -> FixMatch:
    torch.manual_seed(0)
    method = FixMatch(classifier(), **keys).double()
    torch.nn.init.normal_(method.classifier.head.weight, std=4.0)
    return method


def pair(method: Any, n: int = 6) -> Domains:
    return domain_pair(method, n, 1, torch.float64)


def slow(weak: Tensor, strong: Tensor, threshold: float) -> float:
    """The paper's eq. 4 one image at a time."""
    total = 0.0
    for z, s in zip(weak, strong, strict=True):
        p = [value / sum(z.exp().tolist()) for value in z.exp().tolist()]
        label = max(range(len(p)), key=p.__getitem__)
        if p[label] >= threshold:
            total -= float(s[label] - s.exp().sum().log())
    return total / len(weak)


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.95])
def test_it_equals_loops(threshold: float) -> None:
    weak, strong = drawn().logits.detach()
    pseudo = pseudo_labels(weak, threshold)
    assert consistency(strong, pseudo).item() == pytest.approx(slow(weak, strong, threshold), rel=1e-12)


def test_images_that_do_not_count_still_divide() -> None:
    """By the number of confident images instead, one image would weigh as much as a whole batch."""
    weak = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.1, 0.0], [0.0, 0.2]])
    strong = torch.tensor([[0.0, 1.0]]).expand(4, 2)
    alone = float(torch.tensor([0.0, 1.0]).exp().sum().log())
    assert consistency(strong, pseudo_labels(weak, 0.95)).item() == pytest.approx(alone / 4)


def test_without_any_confident_image_loss_and_gradient_are_0() -> None:
    weak, strong = torch.zeros(5, 3), torch.randn(5, 3, requires_grad=True)
    loss = consistency(strong, pseudo_labels(weak, 0.95))
    (gradient,) = torch.autograd.grad(loss, strong)
    assert loss.item() == 0.0 and not gradient.any()


def test_the_loss_of_a_batch_and_its_control() -> None:
    method, control = built(trade_off=0.7).eval(), built(trade_off=0.0).eval()
    batch = pair(method)
    sureness = method.classifier(batch.target.images).detach().softmax(1).max(1).values.sort().values
    half = method.threshold = control.threshold = float(sureness[2:4].mean())  # an untrained network is sure of nothing
    step, still = method(batch, 0.5), control(batch, 0.5)
    known, weak, strong = (
        method.classifier(images).detach() for images in (batch.source.images, batch.target.images, *batch.target.more)
    )
    error = torch.nn.functional.cross_entropy(known, batch.source.labels)
    apart = slow(weak, strong, half)
    assert apart > 0.0 and step.loss.item() == pytest.approx(float(error) + 0.7 * apart, rel=1e-6)
    assert still.loss.item() == pytest.approx(float(error), rel=1e-6)
    assert step.metrics.keys() == still.metrics.keys()
    for key, value in step.metrics.items():
        torch.testing.assert_close(value, still.metrics[key])
    assert step.metrics["confident"].item() == pytest.approx(0.5)


def test_the_weak_view_gets_no_gradient_and_the_strong_one_does() -> None:
    """In evaluation's BatchNorm, where images do not meet."""
    for trade_off in (1.0, 0.0):
        method = built(threshold=0.0, trade_off=trade_off).eval()
        batch = pair(method)
        weak, (strong,) = batch.target.images.requires_grad_(), batch.target.more
        step = method(batch._replace(targets=(batch.target._replace(more=(strong.requires_grad_(),)),)), 0.5)
        ours, theirs = torch.autograd.grad(step.loss, (weak, strong), allow_unused=True)
        assert ours is None or not ours.any()
        assert (theirs is not None and bool(theirs.any())) == (trade_off > 0.0)


def test_all_views_pass_one_forward() -> None:
    """So that BatchNorm sees them together: three forwards move its statistics three times."""
    method = built().train()
    calls = list[int]()
    method.backbone.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    method(pair(method), 0.5)
    assert calls == [18]


def test_bad_keys_and_views_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"method\.threshold: expected a number from 0 to 1, got 2.0; 0.95"):
        built(threshold=2.0)
    with pytest.raises(UserError, match=r"method\.trade_off"):
        built(trade_off=-1.0)
    monkeypatch.setattr(FixMatch, "uses_pixels", False)
    with pytest.raises(UserError, match=r"target_views = \('weak', 'strong'\), so uses_pixels must be True"):
        register(AdaptMethod, {"fixmatch": FixMatch})
    monkeypatch.setattr(FixMatch, "target_views", ("strong",))
    with pytest.raises(UserError, match=r'target_views = .*it is \("weak",\), or that and strong'):
        register(AdaptMethod, {"fixmatch": FixMatch})


@pytest.mark.parametrize(
    ("threshold", "value", "length"),
    [
        (0.6, 1.073855193529, 0.196363404413),
        (0.9, 0.406663717000, 0.136424359945),
        (0.95, 0.111007114608, 0.077676080874),
    ],
)
def test_it_is_the_peers_value(threshold: float, value: float, length: float) -> None:
    """tllib c4aa59e ConfidenceBasedSelfTrainingLoss, and FixMatch of AdaMatch's authors (7a0b40c fixmatch_da) without its alignment."""
    found = drawn()
    loss = consistency(found.adversary[1], pseudo_labels(found.logits[1], threshold))
    (norm,) = gradient_norms(loss, found.adversary)
    assert (loss.item(), norm) == pytest.approx((value, length), rel=PEERS)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(loss, found.logits)
