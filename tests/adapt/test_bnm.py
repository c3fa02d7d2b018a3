"""BNM: the nuclear norm by another way, its limits, and the authors' values."""

import pytest
import torch
from torch import Tensor

from rootstock.adapt.bnm import fast_nuclear_norm, nuclear_norm
from rootstock.tests.adapt.one_update import PEERS, drawn, gradient_norms, small


def loss_of(logits: Tensor, **keys: object) -> Tensor:
    """The transfer loss on these target logits [B, K]."""
    method = small("bnm", classes=logits.shape[1], **keys)
    joint = drawn(len(logits), 7, logits.shape[1]).joint
    return method.transfer(joint._replace(logits=torch.stack([joint.logits[0].detach().to(logits), logits])), 0.5)[0]


@pytest.mark.parametrize("shape", [(12, 5), (4, 9), (6, 6)])
def test_it_is_the_sum_of_roots_of_eigenvalues(shape: tuple[int, int]) -> None:
    p = drawn(shape[0], 3, shape[1]).logits[1].detach().softmax(1)
    gram = p @ p.T if shape[0] <= shape[1] else p.T @ p
    expected = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt().sum()
    torch.testing.assert_close(nuclear_norm(p), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss_of(p.log()), -expected / shape[0], rtol=1e-9, atol=1e-9)


def test_it_is_the_peers_value_or_a_known_multiple() -> None:
    """pytorch-adapt 1366df7 BNMLoss divides by B as this does. The authors (BNM 2d23c61) and DeepDA take the mean of singular values."""
    logits = drawn().logits  # 12 images, 5 classes
    loss = loss_of(logits[1])
    (norm,) = gradient_norms(loss, logits)
    assert (loss.item(), norm) == pytest.approx((-0.425629604598, 0.020559410427), rel=PEERS)
    authors, fast_authors = -1.021511051035, -1.059712536783
    assert loss.item() * 12 / 5 == pytest.approx(authors, rel=PEERS)
    assert loss_of(logits[1], fast=True).item() * 12 / 5 == pytest.approx(fast_authors, rel=PEERS)
    many = drawn(36, 7, 12).logits[1].detach().softmax(1)
    mean = torch.linalg.svdvals(many).mean()
    assert (mean / (nuclear_norm(many) / 36)).item() == pytest.approx(3.0)


def test_it_is_least_for_certain_predictions_of_equally_frequent_classes() -> None:
    balanced = (400.0 * torch.eye(4, dtype=torch.float64)).repeat(3, 1)
    assert loss_of(balanced).item() == pytest.approx(-((12 * 4) ** 0.5) / 12)
    one_class = 400.0 * torch.eye(4, dtype=torch.float64)[[0] * 12]
    assert loss_of(one_class).item() == pytest.approx(-1.0 / 12**0.5)  # collapsed: worse, though as certain
    uncertain = torch.zeros(12, 4, dtype=torch.float64)
    assert loss_of(uncertain).item() == pytest.approx(-((12 / 4) ** 0.5) / 12)
    watched = small("bnm").transfer(drawn(12, 7, 4).joint._replace(logits=torch.stack([balanced, balanced])), 0.5)[1]
    assert watched["norm_share"].item() == pytest.approx(1.0) and watched["target_entropy"].item() < 1e-9


@pytest.mark.parametrize("norm", [nuclear_norm, fast_nuclear_norm])
def test_equal_and_vanishing_singular_values_have_finite_gradients(norm: object) -> None:
    for p in (torch.eye(5), torch.full((6, 5), 0.2), torch.eye(5)[[0] * 6]):
        leaf = p.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(norm(leaf), leaf)  # pyright: ignore[reportCallIssue]
        assert bool(gradient.isfinite().all())


def test_the_fast_norm_is_exact_where_columns_are_orthogonal() -> None:
    p = torch.eye(5)[[0, 1, 1, 2, 3, 4, 4, 4]]
    torch.testing.assert_close(fast_nuclear_norm(p), nuclear_norm(p))
    wide = drawn(3, 3, 8).logits[1].detach().softmax(1)
    longest = sorted((float(column.norm()) for column in wide.T), reverse=True)[:3]
    assert fast_nuclear_norm(wide).item() == pytest.approx(sum(longest))


def test_the_mean_of_shards_is_another_loss() -> None:
    logits = drawn(32, 7, 12).logits[1].detach()
    parts = [loss_of(part).item() for part in logits.split(8)]
    assert abs(sum(parts) / 4 - loss_of(logits).item()) > 0.05


def test_predictions_that_are_no_numbers_have_a_norm_that_is_none() -> None:
    """So that the step is skipped as any other with such a loss: the solver itself ends in an error."""
    for value in (torch.nan, torch.inf):
        rows = torch.rand(6, 4)
        rows[2, 1] = value
        assert nuclear_norm(rows).isnan()
    rows = torch.rand(6, 4, requires_grad=True)
    assert torch.equal(nuclear_norm(rows), torch.linalg.svdvals(rows).sum())
