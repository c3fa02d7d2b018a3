"""AFN: the constant pull outward, dropout that keeps lengths, and peers' published values."""

import pytest
import torch

from rootstock.adapt.afn import length_preserving_dropout, stepwise_norm
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.tests.adapt.one_update import domains, drawn, gradient_norms, small


@pytest.mark.parametrize("step", [1.0, 0.3])
def test_every_row_is_pulled_outward_with_the_same_force(step: float) -> None:
    """2 b step / B along the row, whatever the features; the value is a constant."""
    features = (drawn().features * torch.logspace(-2, 2, 12, dtype=torch.float64)[:, None]).detach().requires_grad_()
    method = small("afn", step=step)
    loss, watched = method.transfer(drawn().joint._replace(features=features), 0.5)
    assert loss.item() == pytest.approx(2 * step**2)
    (gradient,) = torch.autograd.grad(method.trade_off * loss, features)
    unit = features.detach() / features.detach().norm(dim=2, keepdim=True)
    torch.testing.assert_close(gradient, -2.0 * 0.05 * step / 12 * unit)
    lengths = [sum(float(row.norm()) for row in domain) / 12 for domain in features.detach()]
    assert [watched["source_norm"].item(), watched["target_norm"].item()] == pytest.approx(lengths)


def test_a_step_along_the_gradient_makes_them_longer() -> None:
    features = drawn().features
    (gradient,) = torch.autograd.grad(stepwise_norm(features[0], 1.0), features)
    longer = (features - gradient).detach().norm(dim=2) - features.detach().norm(dim=2)
    torch.testing.assert_close(longer[0], torch.full((12,), 2.0 / 12, dtype=torch.float64))


def test_it_is_the_peers_value() -> None:
    """tllib c4aa59e AdaptiveFeatureNorm(1) and pytorch-adapt 1366df7's of the same name, the sum over both domains."""
    found = drawn()
    loss = small("afn").transfer(found.joint, 0.5)[0]
    (norm,) = gradient_norms(loss, found.features)
    assert (loss.item(), norm) == pytest.approx((2.0, 0.816496580928), rel=1e-10)


def test_a_feature_of_length_0_has_a_finite_gradient() -> None:
    features = torch.zeros(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(stepwise_norm(features, 1.0), features)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_keeps_the_expected_squared_length(rate: float) -> None:
    features = torch.ones(4000, 16)
    dropped = length_preserving_dropout(features, rate, Draws(0, torch.arange(4000)))
    squared = dropped.square().sum(1)
    assert float(squared.mean()) == pytest.approx(16.0, rel=0.02)
    # torch's own dropout keeps the sum instead: its squared length would be 16 / (1 - rate).
    assert float(dropped.sum(1).mean()) == pytest.approx(16.0 * (1 - rate) ** 0.5, rel=0.02)
    assert float((dropped == 0).float().mean()) == pytest.approx(rate, abs=0.01)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1.0 / (1 - rate) ** 0.5])


def test_dropout_is_drawn_by_position_and_in_training_alone() -> None:
    batch, method = domains(), small("afn", dropout=0.5)
    features = torch.ones(2, 6, method.classifier.feature_dim, dtype=torch.float64)
    dropped = method.train().seen_by_head(features, batch)
    assert torch.equal(dropped, method.seen_by_head(features, batch))  # no generator
    assert not torch.equal(dropped[0], dropped[1])  # of each domain its own
    half = batch.source.draws.positions[3:]
    later = Draws(batch.source.draws.seed, half, "source/")
    assert torch.equal(length_preserving_dropout(features[0][3:], 0.5, later), dropped[0][3:])
    assert torch.equal(method.eval().seen_by_head(features, batch), features)
    assert torch.equal(small("afn", dropout=0.0).train().seen_by_head(features, batch), features)


def test_the_head_sees_what_was_dropped() -> None:
    batch = domains()
    plain, dropped = (small("afn", dropout=rate)(batch, 0.5) for rate in (0.0, 0.5))
    assert plain.loss.item() != dropped.loss.item()
    assert plain.metrics["transfer_loss"].item() == pytest.approx(dropped.metrics["transfer_loss"].item())


def test_only_the_images_own_features_count() -> None:
    assert not small("afn").couples_samples
    features = drawn().features.detach()
    whole = stepwise_norm(features[0], 1.0)
    parts = torch.stack([stepwise_norm(part, 1.0) for part in features[0].split(4)]).mean()
    torch.testing.assert_close(whole, parts)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"method\.step: must be above 0, got 0.0; 1"):
        small("afn", step=0.0)
    with pytest.raises(UserError, match=r"method\.dropout: expected 0 or more and less than 1, got 1.0"):
        small("afn", dropout=1.0)
