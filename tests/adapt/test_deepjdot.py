"""DeepJDOT: plans against all assignments, what permutations change, and skada's published values."""

import itertools
import sys

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rootstock.adapt.deepjdot import label_costs
from rootstock.core.errors import UserError
from rootstock.core.transport import transport_solver
from rootstock.tests.adapt.one_update import CLASSES, Drawn, drawn, gradient_norms, small


def pair_cost(found: Drawn, i: int, j: int, features: float, labels: float) -> float:
    distance = sum((float(a) - float(b)) ** 2 for a, b in zip(found.features[0][i], found.features[1][j], strict=True))
    return features * distance - labels * float(found.logits[1][j].log_softmax(0)[int(found.labels[i])])


@pytest.mark.parametrize(("features", "labels"), [(1.0, 1.0), (1e-3, 1e-4), (0.0, 1.0), (1.0, 0.0)])
def test_it_is_the_cheapest_of_all_assignments(features: float, labels: float) -> None:
    """Six images of each domain: with equal weights an optimal plan is an assignment, and there are 720."""
    found = drawn(6)._replace()
    found = Drawn(*(part.detach() for part in found))
    costs = [[pair_cost(found, i, j, features, labels) for j in range(6)] for i in range(6)]
    cheapest = min(sum(costs[i][order[i]] for i in range(6)) / 6 for order in itertools.permutations(range(6)))
    loss, watched = small("deepjdot", classes=5, features=features, labels=labels).transfer(found.joint, 0.5)
    assert loss.item() == pytest.approx(cheapest, rel=1e-9)
    parts = features * watched["feature_cost"] + labels * watched["label_cost"]
    assert parts.item() == pytest.approx(cheapest, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_plans_are_optimal_at_any_scale(scale: float) -> None:
    costs = scale * drawn(40, 40).features[0].detach().square()
    plan = transport_solver("the test")(costs)
    rows, columns = linear_sum_assignment(costs.numpy())
    assert (plan * costs).sum().item() == pytest.approx(float(costs[rows, columns].mean()), rel=1e-9)
    torch.testing.assert_close(plan.sum(0), torch.full((40,), 1 / 40, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((40,), 1 / 40, dtype=torch.float64))


def test_it_is_skadas_value() -> None:
    """skada 46bc3db deepjdot_loss, whose plan is ot.emd2's, with the paper's weights and with its own default of 1 and 1."""
    for keys, loss_and_norms in (
        ({}, (0.018379242510, 0.003469402521, 0.000031460935)),
        ({"features": 1.0, "labels": 1.0}, (21.209638446862, 3.531498660349, 0.292676778574)),
    ):
        found = drawn()
        loss = small("deepjdot", classes=5, **keys).transfer(found.joint, 0.5)[0]
        norms = gradient_norms(loss, found.features, found.logits)
        assert [loss.item(), *norms] == pytest.approx(loss_and_norms, rel=1e-6)


def test_the_plan_is_a_constant_to_the_gradient() -> None:
    found = drawn()
    method = small("deepjdot", classes=5, features=1.0, labels=1.0)
    (ours,) = torch.autograd.grad(method.transfer(found.joint, 0.5)[0], found.features)
    distances = (found.features[0][:, None] - found.features[1][None]).square().sum(2)
    plan = method.plan((distances + label_costs(found.labels, found.logits[1])).detach())  # pyright: ignore[reportCallIssue]
    (right,) = torch.autograd.grad((plan * distances).sum(), found.features)
    torch.testing.assert_close(ours, right)


def test_the_order_of_the_target_does_not_matter() -> None:
    joint = drawn().joint
    order = torch.tensor([3, 1, 0, 2, 11, 5, 4, 10, 9, 8, 6, 7])
    turned = joint._replace(
        features=torch.stack([joint.features[0], joint.features[1][order]]),
        logits=torch.stack([joint.logits[0], joint.logits[1][order]]),
    )
    method = small("deepjdot", classes=5)
    torch.testing.assert_close(method.transfer(turned, 0.5)[0], method.transfer(joint, 0.5)[0])


def test_a_target_that_is_the_source_costs_nothing() -> None:
    """The same features in another order, with the right labels: every image finds itself."""
    joint = drawn().joint.detached()
    order = torch.tensor([3, 1, 0, 2, 11, 5, 4, 10, 9, 8, 6, 7])
    right = 200.0 * torch.nn.functional.one_hot(joint.labels, 5).double()
    same = joint._replace(
        features=torch.stack([joint.features[0], joint.features[0][order]]), logits=torch.stack([right, right[order]])
    )
    loss, watched = small("deepjdot", classes=5, features=1.0, labels=1.0).transfer(same, 0.5)
    assert loss.item() == pytest.approx(0.0, abs=1e-9)
    assert watched["plan_agreement"].item() == pytest.approx(1.0)


def test_labels_decide_where_features_are_alike() -> None:
    joint = drawn().joint.detached()
    right = 50.0 * torch.nn.functional.one_hot(joint.labels, 5).double().flip(0)
    same = joint._replace(features=torch.ones_like(joint.features), logits=torch.stack([right, right]))
    _, watched = small("deepjdot", classes=5).transfer(same, 0.5)
    assert watched["plan_agreement"].item() == pytest.approx(1.0)


def test_the_cost_of_labels_is_the_cross_entropy_of_every_pair() -> None:
    found = drawn()
    costs = label_costs(found.labels, found.logits[1].detach())
    for i in range(12):
        expected = torch.nn.functional.cross_entropy(
            found.logits[1].detach(), found.labels[i].expand(12), reduction="none"
        )
        torch.testing.assert_close(costs[i], expected)


def test_costs_that_are_no_numbers_get_a_plan_and_stay_no_numbers() -> None:
    """So that the step is skipped as any other with such a loss, instead of waiting in the solver."""
    for value in (float("nan"), float("inf")):
        costs = torch.full((3, 3), value)
        plan = transport_solver("the test")(costs)
        assert torch.equal(plan, torch.full((3, 3), 1 / 9)) and plan.dtype == torch.float32
        assert not (plan * costs).sum().isfinite()
    assert transport_solver("the test")(torch.zeros(2, 2)).sum().item() == 1.0


def test_without_the_solver_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(UserError, match=r"method deepjdot needs POT; `pip install 'rootstock\[adapt\]'`"):
        small("deepjdot")


def test_weights_out_of_range_are_refused() -> None:
    for key in ("features", "labels"):
        with pytest.raises(UserError, match=rf"method\.{key}: must be 0 or more, got -1.0; 0.00"):
            small("deepjdot", CLASSES, **{key: -1.0})
    with pytest.raises(UserError, match="both 0, so every plan costs nothing"):
        small("deepjdot", features=0.0, labels=0.0)


def test_the_whole_batch_is_matched_at_once() -> None:
    """Plans inside shards cannot pair images of different ones: they cost more."""
    found = drawn(24)
    method = small("deepjdot", classes=5, features=1.0, labels=1.0)

    def part(x: Tensor) -> list[Tensor]:
        return list(x.detach().split(6, 1))

    shards = [
        method.transfer(found.joint._replace(features=f, logits=z, labels=y), 0.5)[0].item()
        for f, z, y in zip(part(found.features), part(found.logits), found.labels.split(6), strict=True)
    ]
    assert method.transfer(found.joint, 0.5)[0].item() < sum(shards) / 4 - 0.1
