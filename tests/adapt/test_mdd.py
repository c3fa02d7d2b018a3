"""MDD against loops, the directions of its game, certain predictions, and tllib's published values."""

import math

import pytest
import torch
from torch import Tensor, nn

from rootstock.adapt.mdd import MDD, log_of_others, margin_disparity
from rootstock.adapt.parts.transfer import Joint
from rootstock.core.errors import UserError
from rootstock.tests.adapt.one_update import CLASSES, domains, drawn, gradient_norms, small


def slow(main: Tensor, adversary: Tensor, margin: float) -> float:
    source = target = 0.0
    for z, other in zip(main[0], adversary[0], strict=True):
        source -= math.log(float(other.softmax(0)[int(z.argmax())]))
    for z, other in zip(main[1], adversary[1], strict=True):
        target += math.log(1.0 - float(other.softmax(0)[int(z.argmax())]))
    return margin * source / len(main[0]) - target / len(main[1])


def mdd(**keys: object) -> MDD:
    made = small("mdd", classes=5, hidden=8, **keys)
    assert isinstance(made, MDD)
    with torch.no_grad():  # far from the tiny weights that it begins with
        for parameter in made.adversary.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return made


def joint(method: MDD) -> Joint:
    return drawn(dim=method.classifier.feature_dim).joint


@pytest.mark.parametrize("margin", [1.0, 4.0])
def test_it_equals_loops(margin: float) -> None:
    found = drawn()
    loss = margin_disparity(found.logits, found.adversary, margin)
    assert loss.item() == pytest.approx(slow(found.logits.detach(), found.adversary.detach(), margin), rel=1e-10)


def test_it_is_tllibs_value_where_tllib_is_exact() -> None:
    """tllib c4aa59e -ClassificationMarginDisparityDiscrepancy(4.) on the same logits, whose log has 1 - p + 1e-6."""
    found = drawn()
    loss = margin_disparity(found.logits, found.adversary, 4.0)
    (norm,) = gradient_norms(loss, found.adversary)
    assert loss.item() == pytest.approx(10.138673212777, rel=1e-6)
    assert norm == pytest.approx(1.248502604781, rel=1e-6)


def test_certain_predictions_are_finite_and_pull() -> None:
    """log(1 - p) at a logit gap of 40, where 1 - p is 0 in float32: -39.3, and at 1,000 too. tllib's is log(1e-6) there."""
    for gap in (40.0, 1000.0):
        logits = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
        value = log_of_others(logits, torch.tensor([0]))
        assert value.item() == pytest.approx(math.log(2.0) - gap, rel=1e-6)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.5, 0.5]]))
    assert (1.0 - torch.tensor([40.0, 0.0, 0.0]).softmax(0)[0]).log().item() == -math.inf
    rare = log_of_others(torch.tensor([[-40.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert rare.item() == pytest.approx(-math.exp(-40.0) / 2.0, rel=1e-6)


def test_the_main_head_gets_no_gradient() -> None:
    method = mdd()
    found = joint(method)
    loss = method.transfer(found, 1.0)[0]
    assert torch.autograd.grad(loss, found.logits, allow_unused=True) == (None,)


def tllib(step: int) -> float:
    """Its WarmStartGradientReverseLayer(alpha=1, lo=0, hi=0.1, max_iters=1000), which MDD steps once an iteration."""
    return 2.0 * 0.1 / (1.0 + math.exp(-step / 1000)) - 0.1


@pytest.mark.parametrize(
    ("progress", "reversal", "steepness", "weight"),
    [
        (1.0, 0.1, 10.0, 0.0999909),
        (0.5, 1.0, 10.0, 0.986614),
        (0.0, 1.0, 10.0, 0.0),
        *((step / 20_000, 0.1, 20.0, tllib(step)) for step in (500, 5000)),  # its 20,000 steps on Office-31
    ],
)
def test_features_get_the_adversarys_gradient_reversed_by_the_schedule(
    progress: float, reversal: float, steepness: float, weight: float
) -> None:
    method = mdd(reversal=reversal, steepness=steepness)
    found = joint(method)
    (reversed_gradient,) = torch.autograd.grad(method.transfer(found, progress)[0], found.features)
    plain = margin_disparity(found.logits, method.adversary(found.features), 4.0)
    (gradient,) = torch.autograd.grad(plain, found.features)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(reversed_gradient, -weight * gradient, rtol=1e-5, atol=1e-12)


def test_the_adversary_learns_whatever_the_weight() -> None:
    method = mdd()
    found = joint(method)
    at = [torch.autograd.grad(method.transfer(found, p)[0], list(method.adversary.parameters())) for p in (0.0, 1.0)]
    for a, b in zip(*at, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)


def test_the_adversary_learns_to_agree_on_the_source_and_to_disagree_on_the_target() -> None:
    method = mdd(reversal=0.0)
    found = joint(method).detached()
    optimizer = torch.optim.Adam(method.adversary.parameters(), lr=0.05)
    watched: dict[str, Tensor] = {}
    for _ in range(80):
        loss, watched = method.transfer(found, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert watched["source_agreement"].item() > 0.9 and watched["target_agreement"].item() < 0.1


def test_without_reversal_features_get_nothing_and_the_adversary_learns() -> None:
    method, batch = small("mdd", hidden=8, reversal=0.0), domains()
    step = method(batch, 1.0)
    control = small("mdd", hidden=8, trade_off=0.0)
    alone = control(batch, 1.0)
    for a, b in zip(method.classifier.parameters(), control.classifier.parameters(), strict=True):
        (ours,) = torch.autograd.grad(step.loss, a, retain_graph=True)
        (right,) = torch.autograd.grad(alone.loss, b, retain_graph=True)
        torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-9)
    assert isinstance(method, MDD)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(step.loss, list(method.adversary[2].parameters())))


def test_the_adversary_begins_small_and_has_no_batchnorm() -> None:
    method = small("mdd", hidden=256)
    assert isinstance(method, MDD)
    assert [type(layer) for layer in method.adversary] == [nn.Linear, nn.ReLU, nn.Linear]
    first, last = method.adversary[0], method.adversary[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    assert float(first.weight.detach().std()) == pytest.approx(0.01, rel=0.1) and not first.bias.any()
    assert last.weight.shape == (4, 256) and not method.couples_samples


def test_wrong_values_are_refused() -> None:
    for key, value, usual in (
        ("margin", 0.0, "4"),
        ("reversal", -0.1, "0.1"),
        ("steepness", 0.0, "10"),
        ("hidden", 0, "1024"),
    ):
        with pytest.raises(UserError, match=rf"method\.{key}: .*; {usual}"):
            small("mdd", CLASSES, **{key: value})
    with pytest.raises(UserError, match="mdd needs at least 2 classes"):
        small("mdd", classes=1)
