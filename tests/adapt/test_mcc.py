"""MCC against loops, its limits, peers' published values, and what its mean over shards would be."""

import math

import pytest
import torch
from torch import Tensor

from rootstock.adapt.mcc import class_confusion
from rootstock.core.errors import UserError
from rootstock.tests.adapt.one_update import PEERS, drawn, gradient_norms, small


def slow(logits: Tensor, temperature: float) -> float:
    """The paper's steps one entry at a time, with its weights of mean 1."""
    rows = [[math.exp(float(z) / temperature) for z in row] for row in logits]
    rows = [[value / sum(row) for value in row] for row in rows]
    certain = [1.0 + math.exp(sum(p * math.log(p) for p in row)) for row in rows]
    weights = [len(rows) * w / sum(certain) for w in certain]
    classes = range(len(rows[0]))
    confusion = [
        [sum(w * row[j] * row[k] for w, row in zip(weights, rows, strict=True)) for k in classes] for j in classes
    ]
    normalised = [[value / sum(row) for value in row] for row in confusion]
    return sum(normalised[j][k] for j in classes for k in classes if j != k) / len(classes)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_equals_loops(temperature: float) -> None:
    logits = drawn().logits[1].detach()
    assert class_confusion(logits, temperature).item() == pytest.approx(slow(logits, temperature), rel=1e-12)


def test_it_is_the_peers_value() -> None:
    """tllib c4aa59e MinimumClassConfusionLoss(2.5) and pytorch-adapt 1366df7 MCCLoss(2.5) on the same logits: loss, norm of the gradient.

    tllib adds 1e-5 inside the entropy's logarithm, pytorch-adapt the smallest number.
    """
    logits = drawn().logits
    loss = class_confusion(logits[1], 2.5)
    (norm,) = gradient_norms(loss, logits)
    assert (loss.item(), norm) == pytest.approx((0.708154127355, 0.015718012419), rel=PEERS / 10)  # pytorch-adapt
    assert (loss.item(), norm) == pytest.approx((0.708154059310, 0.015718025983), rel=1e-6)  # tllib
    # The default of pytorch-adapt is another temperature than the paper's.
    assert class_confusion(logits[1], 1.0).item() == pytest.approx(0.514095128233, rel=PEERS / 10)


def test_no_gradient_goes_through_the_weights() -> None:
    """skada's does: there the gradient is another one."""
    logits = drawn().logits[1].detach().requires_grad_()
    (ours,) = torch.autograd.grad(class_confusion(logits, 2.5), logits)

    def confused(weights: Tensor) -> Tensor:
        p = (logits / 2.5).softmax(1)
        confusion = p.T @ (weights[:, None] * p)
        return 1.0 - (confusion.diagonal() / confusion.sum(1)).mean()

    p = (logits / 2.5).softmax(1)
    weights = 1.0 + (p * p.log()).sum(1).exp()
    torch.testing.assert_close(torch.autograd.grad(confused(weights.detach()), logits)[0], ours)
    through = torch.autograd.grad(confused(weights), logits)[0]
    assert (through - ours).norm() > 0.01 * ours.norm()


def test_certain_predictions_that_cover_the_classes_have_none() -> None:
    logits = 200.0 * torch.eye(5).repeat(3, 1)
    assert class_confusion(logits, 2.5).item() < 1e-20
    assert class_confusion(torch.zeros(12, 5), 2.5).item() == pytest.approx(0.8)  # all alike: K - 1 of K


def test_a_class_that_the_batch_lacks_leaves_loss_and_gradient_finite() -> None:
    logits = torch.tensor([[400.0, 0.0, -400.0], [0.0, 300.0, -500.0]], requires_grad=True)
    loss = class_confusion(logits, 1.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert 0.0 <= loss.item() < 0.4 and bool(gradient.isfinite().all())


def test_the_mean_of_shards_is_another_loss() -> None:
    """Which is why it is computed on the gathered batch: every process's own would be the mean of such parts."""
    logits = drawn(32, 7, 12).logits[1].detach()
    parts = [class_confusion(part, 1.0).item() for part in logits.split(8)]
    assert sum(parts) / 4 - class_confusion(logits, 1.0).item() > 0.05


def test_the_order_of_images_and_of_classes_does_not_matter() -> None:
    logits = drawn().logits[1].detach()
    expected = class_confusion(logits, 2.5)
    torch.testing.assert_close(class_confusion(logits.flip(0), 2.5), expected)
    torch.testing.assert_close(class_confusion(logits.flip(1), 2.5), expected)


def test_the_source_takes_no_part() -> None:
    method, joint = small("mcc", classes=5), drawn().joint
    loss, watched = method.transfer(joint, 0.5)
    (gradient,) = torch.autograd.grad(loss, joint.logits)
    assert gradient[0].abs().max() == 0.0 and gradient[1].abs().max() > 0.0
    p = joint.logits[1].detach().softmax(1)
    assert watched["target_entropy"].item() == pytest.approx(float(-(p * p.log()).sum(1).mean()))


def test_a_temperature_of_0_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.temperature: must be above 0, got 0.0; 2.5"):
        small("mcc", temperature=0.0)
