"""Gradient reversal, its schedule, and DANN against its control."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rootstock.adapt.dann import DANN
from rootstock.adapt.parts.reversal import Discriminator, reversal_weight, reverse_gradient
from rootstock.adapt.source_only import SourceOnly
from rootstock.core.draws import Draws
from rootstock.core.method import Domains, Labelled, Unlabelled
from rootstock.core.model import norm
from rootstock.core.model.backbone import Backbone
from rootstock.core.model.classifier import Classifier
from rootstock.tests.adapt.one_update import PEERS, drawn, gradient_norms, scorer

HALF = (0.5, 0.5, 0.5)


class Net(nn.Module):
    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu().mean((2, 3))


def classifier(classes: int = 3) -> Classifier:
    torch.manual_seed(0)
    spec = {"name": "net", "args": {}, "size": 8, "stem": "default", "pooling": None}
    made = Classifier(Backbone(Net(), spec, HALF, HALF), [str(k) for k in range(classes)])
    nn.init.normal_(made.head.weight)
    return made


def pair(n: int = 6, shift: float = 1.0, seed: int = 0) -> Domains:
    """Images whose domains differ by `shift` in brightness."""
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, n, 3, 8, 8, generator=generator)
    draws = Draws(seed, torch.arange(n))
    labels = torch.randint(3, (n,), generator=generator)
    return Domains.of(Labelled(source, labels, draws), Unlabelled(target + shift, draws))


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(module.parameters(), found, strict=True)]


def test_the_weight_is_the_papers_at_the_start_half_way_and_the_end() -> None:
    assert reversal_weight(0.0) == 0.0
    assert reversal_weight(0.5) == pytest.approx(0.9866, abs=1e-4)
    assert reversal_weight(1.0) == pytest.approx(0.99991, abs=1e-5)
    assert reversal_weight(0.5, 0.3) == pytest.approx(0.3 * reversal_weight(0.5))
    steps = [reversal_weight(k / 20) for k in range(21)]
    assert steps == sorted(steps)


def test_a_steepness_of_20_over_20000_steps_is_tllibs_count_of_steps() -> None:
    for step in (0, 1, 500, 5000, 19_999):
        tllib = 2.0 / (1.0 + math.exp(-1.0 * step / 1000)) - 1.0
        assert reversal_weight(step / 20_000, 1.0, 20.0) == pytest.approx(tllib, abs=1e-12)
    assert reversal_weight(torch.tensor(0.3, dtype=torch.float64), 2.0, 20.0) == pytest.approx(
        2.0 * reversal_weight(0.3, 1.0, 20.0)
    )


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, -0.5])
def test_reversal_is_the_identity_forward_and_minus_the_weight_backward(weight: float) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reverse_gradient(x, weight), x)
    plain = torch.autograd.grad((x**3).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad((reverse_gradient(x, weight) ** 3).sum(), x)[0], -weight * plain)


def test_the_discriminator_has_no_normalisation_and_answers_with_logits() -> None:
    discriminator = Discriminator(4, 8)
    assert {type(m) for m in discriminator.layers} == {nn.Linear, nn.ReLU}
    assert discriminator(torch.randn(5, 4)).shape == (5,)
    last = discriminator.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.fill_(1e4)
    guesses = discriminator(torch.randn(5, 4))
    assert bool((guesses > 1000.0).all())
    assert bool(F.binary_cross_entropy_with_logits(guesses, torch.zeros(5)).isfinite())


def test_a_discriminator_with_batchnorm_sees_both_domains_as_one_batch() -> None:
    """In a batch for each domain it would see less: each domain's normalised values would have mean 0."""
    torch.manual_seed(0)
    discriminator = Discriminator(4, 8, batchnorm=True).requires_grad_(False)
    norm.convert_batch_norms(discriminator, "local")
    features = torch.randn(2, 16, 4) + torch.tensor([0.0, 5.0]).view(2, 1, 1)
    guesses = discriminator(features)
    x = features.flatten(0, 1)
    for layer in discriminator.layers:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            x = (x - x.mean(0)) / (x.var(0, correction=0) + layer.eps).sqrt()
        else:
            x = layer(x)
    torch.testing.assert_close(guesses, x[:, 0].view(2, 16), rtol=1e-4, atol=1e-5)
    first = discriminator.layers[:2](features.flatten(0, 1)).view(2, 16, 8).mean(1)
    alone = torch.stack([discriminator.layers[:2](part).mean(0) for part in features])
    assert (first[0] - first[1]).abs().mean() > 1.0 and float(alone.abs().max()) < 1e-5


def test_groups_of_the_discriminator_hold_both_rows_of_an_image() -> None:
    torch.manual_seed(0)
    discriminator, features = Discriminator(4, 8, batchnorm=True), torch.randn(2, 6, 4)
    norm.convert_batch_norms(discriminator, "group", 2)
    pieces = [discriminator(part) for part in features.split(2, 1)]
    torch.testing.assert_close(discriminator(features), torch.cat(pieces, 1))


def test_forward_equals_a_slow_version() -> None:
    method, batch = DANN(classifier(), hidden=8, trade_off=0.7, label_smoothing=0.1), pair()
    step = method(batch, 0.25)
    features = method.backbone(torch.cat([batch.source.images, batch.target.images]))
    logits = method.classifier.head(features)
    loss = F.cross_entropy(logits[:6], batch.source.labels, label_smoothing=0.1)
    guesses = method.discriminator(features).sigmoid()
    domain = -sum(guesses[i].log() for i in range(6)) - sum((1 - guesses[6 + i]).log() for i in range(6))
    assert step.loss.item() == pytest.approx((loss + 0.7 * domain / 12).item(), rel=1e-5)
    right = sum(bool(guesses[i] > 0.5) for i in range(6)) + sum(bool(guesses[6 + i] <= 0.5) for i in range(6))
    assert step.metrics["domain_accuracy"].item() == pytest.approx(right / 12)
    assert step.metrics["source_accuracy"].item() == pytest.approx(
        sum(int(logits[i].argmax()) == int(batch.source.labels[i]) for i in range(6)) / 6
    )
    assert not any(metric.requires_grad for metric in step.metrics.values())


def test_one_forward_shows_batchnorm_both_domains() -> None:
    method, batch = DANN(classifier(), hidden=8), pair(shift=3.0)
    net = method.backbone.model
    assert isinstance(net, Net)
    both = net.conv(torch.cat([batch.source.images, batch.target.images])).mean((0, 2, 3))
    method(batch, 0.5)
    assert net.norm.running_mean is not None and int(net.norm.num_batches_tracked or 0) == 1
    torch.testing.assert_close(net.norm.running_mean, 0.1 * both, rtol=1e-4, atol=1e-6)


def test_flipping_the_weight_flips_the_features_gradient() -> None:
    method = DANN(classifier(), hidden=8)
    features = torch.randn(2, 5, 6, requires_grad=True)
    logits = method.classifier.head(features)

    def gradient(weight: float) -> Tensor:
        return torch.autograd.grad(method.domain_loss(features, logits, weight)[0], features, retain_graph=True)[0]

    assert gradient(0.8).abs().max() > 1e-5
    torch.testing.assert_close(gradient(-0.8), -gradient(0.8))
    torch.testing.assert_close(gradient(0.4), 0.5 * gradient(0.8))


def test_the_discriminator_learns_whatever_the_weight() -> None:
    method, batch = DANN(classifier(), hidden=8), pair()
    at_start = gradients(method(batch, 0.0).loss, method.discriminator)
    at_end = gradients(method(batch, 1.0).loss, method.discriminator)
    assert all(g.abs().max() > 0 for g in at_start)
    for a, b in zip(at_start, at_end, strict=True):
        torch.testing.assert_close(a, b)


def test_the_control_hands_the_features_no_gradient_of_the_discriminator() -> None:
    batch = pair()
    control = DANN(classifier(), hidden=8, reversal=0.0)
    step = control(batch, 1.0)
    features = control.backbone(torch.cat([batch.source.images, batch.target.images]))
    supervised = F.cross_entropy(control.classifier.head(features[:6]), batch.source.labels)
    for ours, alone in zip(
        gradients(step.loss, control.classifier), gradients(supervised, control.classifier), strict=True
    ):
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-6)
    assert all(g.abs().max() > 0 for g in gradients(step.loss, control.discriminator))
    adversarial = DANN(classifier(), hidden=8)
    moved = gradients(adversarial(batch, 1.0).loss, adversarial.backbone)
    assert any(
        not torch.allclose(a, b, atol=1e-6) for a, b in zip(moved, gradients(step.loss, control.backbone), strict=True)
    )


def test_at_weight_0_the_discriminator_beats_chance_on_separable_features() -> None:
    method, batch = DANN(classifier(), hidden=16, reversal=0.0), pair(16, shift=2.0)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    accuracy = torch.zeros(())
    for _ in range(60):
        step = method(batch, 1.0)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        accuracy = step.metrics["domain_accuracy"]
    assert accuracy.item() > 0.95


@pytest.mark.parametrize(("weight", "rises"), [(1.0, True), (-1.0, False)])
def test_a_step_along_the_reversed_gradient_fools_the_discriminator(weight: float, rises: bool) -> None:
    method, batch = DANN(classifier(), hidden=16), pair(16)
    images = torch.cat([batch.source.images, batch.target.images])

    def domain_loss() -> Tensor:
        features = method.backbone(images).unflatten(0, (2, -1))
        return method.domain_loss(features, method.classifier.head(features), weight)[0]

    before = domain_loss()
    parameters = list(method.backbone.parameters())
    with torch.no_grad():
        for parameter, gradient in zip(parameters, torch.autograd.grad(before, parameters), strict=True):
            parameter -= 0.1 * gradient
    after = domain_loss()
    assert abs(after.item() - before.item()) > 1e-6
    assert (after.item() > before.item()) == rises


def test_source_only_does_not_look_at_the_target() -> None:
    batch = pair()
    method = SourceOnly(classifier())
    odd = Domains.of(batch.source, Unlabelled(batch.target.images * float("nan"), batch.target.draws))
    step = method(odd, 0.5)
    assert bool(step.loss.isfinite()) and not method.sees_target
    net = method.backbone.model
    assert isinstance(net, Net) and net.norm.running_mean is not None
    assert bool(net.norm.running_mean.isfinite().all())
    again = SourceOnly(classifier())(batch, 0.5)
    assert again.loss.item() == step.loss.item()


def test_it_is_the_peers_value() -> None:
    """tllib c4aa59e DomainAdversarialLoss and the `DANN` of CDAN's authors (c904cd3), at reversal 1: loss, norms of gradients."""
    method, found = DANN(classifier()), drawn()
    method.discriminator = scorer(7)  # pyright: ignore[reportAttributeAccessIssue]
    loss, _ = method.domain_loss(found.features, found.logits, 1.0)
    (weights, _) = method.discriminator.parameters()
    norms = gradient_norms(loss, found.features, weights)
    assert [loss.item(), *norms] == pytest.approx([0.891896884013, 0.195509560627, 0.430418564657], rel=PEERS)
    # pytorch-adapt 1366df7 DANNHook, partly in float32: the mean of three losses.
    total = (F.cross_entropy(found.logits[0], found.labels) + 2.0 * loss) / 3.0
    assert total.item() == pytest.approx(1.892175854486, rel=1e-6)
    assert [2.0 * n / 3.0 for n in norms] == pytest.approx([0.130339708056, 0.286945711909], rel=1e-6)
