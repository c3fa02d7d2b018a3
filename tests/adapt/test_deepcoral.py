"""DeepCORAL against loops, what it is blind to, and peers' published values."""

import pytest
import torch
from torch import Tensor

from rootstock.adapt.deepcoral import coral
from rootstock.tests.adapt.one_update import PEERS, drawn, gradient_norms, small


def slow(source: Tensor, target: Tensor) -> float:
    """Equations 1 to 3 of the paper, one entry at a time, covariances from sums of squares."""

    def covariance(x: list[list[float]], a: int, b: int) -> float:
        n = len(x)
        products = sum(row[a] * row[b] for row in x)
        return (products - sum(row[a] for row in x) * sum(row[b] for row in x) / n) / (n - 1)

    s, t, d = source.tolist(), target.tolist(), source.shape[1]
    return sum((covariance(s, a, b) - covariance(t, a, b)) ** 2 for a in range(d) for b in range(d)) / (4 * d**2)


def test_it_equals_loops() -> None:
    for x in (drawn().features.detach(), drawn().logits.detach()):
        assert coral(*x).item() == pytest.approx(slow(*x), rel=1e-10)
    assert coral(x[0], x[1][:9]).item() == pytest.approx(slow(x[0], x[1][:9]), rel=1e-10)  # of unequal numbers


def test_it_is_the_peers_value() -> None:
    """pytorch-adapt 1366df7 CORALLoss, DeepDA f951df1 CORAL and skada 46bc3db deepcoral_loss, all three alike."""
    logits = drawn().logits
    loss = small("deepcoral", classes=5).transfer(drawn().joint._replace(logits=logits), 0.5)[0]
    (norm,) = gradient_norms(loss, logits)
    assert (loss.item(), norm) == pytest.approx((3.777297035935, 1.090873398028), rel=PEERS)


def test_tllibs_is_another_loss() -> None:
    """tllib c4aa59e CorrelationAlignmentLoss, as DomainBed's: means of squares, without the 4, and the means of features as well."""
    source, target = drawn().logits.detach()
    covariances = (torch.cov(source.T) - torch.cov(target.T)).square().mean()
    means = (source.mean(0) - target.mean(0)).square().mean()
    theirs = 15.988461404734
    assert (covariances + means).item() == pytest.approx(theirs, rel=PEERS)
    assert coral(source, target).item() == pytest.approx((theirs - means.item()) / 4, rel=PEERS)


def test_it_does_not_see_means_and_says_how_far_they_are_apart() -> None:
    joint = drawn().joint
    method = small("deepcoral", classes=5)
    moved = joint._replace(logits=joint.logits + torch.tensor([[[0.0]], [[7.0]]]))
    (loss, before), (same, after) = (method.transfer(one, 0.5) for one in (joint, moved))
    torch.testing.assert_close(loss, same)
    source, target = moved.logits.detach()
    gap = (source.mean(0) - target.mean(0)).square().sum() / source.var(0).sum()
    assert after["mean_gap"].item() == pytest.approx(float(gap)) and after["mean_gap"] > 5 * before["mean_gap"]
    assert coral(source, source + 3.0).item() == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize(("layer", "moved"), [("logits", "logits"), ("features", "features")])
def test_it_aligns_the_layer_that_is_named(layer: str, moved: str) -> None:
    joint = drawn().joint
    loss = small("deepcoral", classes=5, layer=layer).transfer(joint, 0.5)[0]
    gradients = torch.autograd.grad(loss, (joint.features, joint.logits), allow_unused=True)
    assert [g is not None for g in gradients] == [moved == "features", moved == "logits"]
    assert loss.item() == pytest.approx(slow(*(joint.features if layer == "features" else joint.logits)), rel=1e-10)


def test_the_mean_of_shards_is_another_loss() -> None:
    x = drawn(32).features.detach()
    parts = [coral(s, t).item() for s, t in zip(x[0].split(8), x[1].split(8), strict=True)]
    assert abs(sum(parts) / 4 - coral(*x).item()) > 0.2 * coral(*x).item()
