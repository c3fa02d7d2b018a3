"""CDAN+E against loops: the map, its sketch, the weights, and where gradients go."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rootstock.adapt.cdan import CDAN, MultilinearMap
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Domains, Labelled, Unlabelled
from rootstock.core.model.backbone import Backbone
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.tests.adapt.one_update import PEERS, Drawn, drawn, gradient_norms, scorer

HALF = (0.5, 0.5, 0.5)
DIM, CLASSES, N = 5, 3, 6


class Net(nn.Module):
    num_features = DIM

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, DIM, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).relu().mean((2, 3))


def method(**options: object) -> CDAN:
    torch.manual_seed(0)
    spec = {"name": "net", "args": {}, "size": 8, "stem": "default", "pooling": None}
    classifier = Classifier(Backbone(Net(), spec, HALF, HALF), [str(k) for k in range(CLASSES)])
    nn.init.normal_(classifier.head.weight, std=2.0)
    return CDAN(classifier, hidden=8, **options).double()  # pyright: ignore[reportArgumentType]


def tensors(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features [2, N, D] and logits [2, N, K]; the target's logits are flatter, so that entropies differ by domain."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, N, DIM, generator=generator, dtype=torch.float64)
    logits = (
        scale * torch.randn(2, N, CLASSES, generator=generator, dtype=torch.float64) * torch.tensor([[[3.0]], [[0.5]]])
    )
    return features.requires_grad_(), logits.detach().requires_grad_()


def slow(cdan: CDAN, features: Tensor, logits: Tensor, reverse_by: float | None = None) -> Tensor:
    """The authors' loss one sample at a time; reverse_by None reverses no gradient."""
    domains = []
    for domain in range(2):
        weights, errors = [], []
        for f, g in zip(features[domain], logits[domain], strict=True):
            p = g.exp() / g.exp().sum()
            crossed = torch.stack([p[k].detach() * f[d] for k in range(CLASSES) for d in range(DIM)])
            probability = cdan.discriminator(crossed[None])[0].sigmoid()
            errors.append(-(probability if domain == 0 else 1 - probability).log())
            weights.append(
                1.0 + torch.exp((p * p.log()).sum()) if cdan.entropy else torch.ones((), dtype=torch.float64)
            )
        total = sum(w.detach() for w in weights)
        domains.append(sum(w * e for w, e in zip(weights, errors, strict=True)) / total)
    return torch.stack(domains).mean()


@pytest.mark.parametrize("entropy", [True, False])
def test_the_loss_equals_a_loop_with_weights_normalised_in_each_domain(entropy: bool) -> None:
    cdan, (features, logits) = method(entropy=entropy), tensors()
    loss, guesses = cdan.domain_loss(features, logits, 0.5)
    assert loss.item() == pytest.approx(slow(cdan, features, logits).item(), rel=1e-5)
    assert guesses.shape == (2, N)


def test_one_domain_entirely_uncertain_weighs_as_much_as_the_other() -> None:
    cdan, (features, logits) = method(), tensors()
    flat = torch.stack([100.0 * logits[0], 0.0 * logits[1]])
    loss, guesses = cdan.domain_loss(features, flat, 1.0)
    guesses = guesses.double()
    # With all weights equal inside each domain, each domain has half of the loss, however certain its predictions are.
    expected = (nn.functional.softplus(-guesses[0]).mean() + nn.functional.softplus(guesses[1]).mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_gradients_are_the_plain_ones_reversed(weight: float) -> None:
    cdan, (features, logits) = method(), tensors()
    ours = torch.autograd.grad(cdan.domain_loss(features, logits, weight)[0], (features, logits))
    plain = torch.autograd.grad(slow(cdan, features, logits), (features, logits))
    for a, b in zip(ours, plain, strict=True):
        assert b.abs().max() > 1e-5
        torch.testing.assert_close(a, -weight * b, rtol=1e-4, atol=1e-8)


def test_without_entropy_the_predictions_get_no_gradient() -> None:
    cdan, (features, logits) = method(entropy=False), tensors()
    loss, _ = cdan.domain_loss(features, logits, 1.0)
    of_features, of_logits = torch.autograd.grad(loss, (features, logits), allow_unused=True)
    assert of_features.abs().max() > 0 and of_logits is None


def test_the_discriminators_gradient_is_not_reversed() -> None:
    cdan, (features, logits) = method(), tensors()
    parameters = list(cdan.discriminator.parameters())
    ours = torch.autograd.grad(cdan.domain_loss(features, logits, 0.9)[0], parameters)
    for a, b in zip(ours, torch.autograd.grad(slow(cdan, features, logits), parameters), strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)


def test_certain_predictions_have_finite_gradients() -> None:
    cdan, (features, logits) = method(), tensors(scale=1e4)
    for gradient in torch.autograd.grad(cdan.domain_loss(features, logits, 1.0)[0], (features, logits)):
        assert bool(gradient.isfinite().all())


def test_the_control_trains_the_classifier_on_the_source_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, N, 3, 8, 8, generator=generator, dtype=torch.float64)
    draws = Draws(0, torch.arange(N))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    batch = Domains.of(Labelled(source, labels, draws), Unlabelled(target, draws))
    control = method(reversal=0.0)
    ours = torch.autograd.grad(control(batch, 1.0).loss, list(control.classifier.parameters()))
    alone = nn.functional.cross_entropy(control.classifier(source), labels)
    for a, b in zip(ours, torch.autograd.grad(alone, list(control.classifier.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


def test_the_map_is_the_outer_product() -> None:
    f, g = torch.randn(4, DIM), torch.rand(4, CLASSES)
    crossed = MultilinearMap(DIM, CLASSES)(f, g)
    for i in range(4):
        expected = [float(g[i, k] * f[i, d]) for k in range(CLASSES) for d in range(DIM)]
        assert crossed[i].tolist() == pytest.approx(expected)


def test_the_sketch_keeps_inner_products_in_expectation() -> None:
    generator = torch.Generator().manual_seed(3)
    f, g = torch.randn(2, 16, generator=generator), torch.rand(2, 8, generator=generator)
    f, g = nn.functional.normalize(f, dim=1), nn.functional.normalize(g, dim=1)
    sketch = MultilinearMap(16, 8, 100)
    assert sketch.randomized and sketch.out == 100
    products = []
    for _ in range(2000):
        sketch.features.copy_(torch.randn(16, 100, generator=generator))
        sketch.predictions.copy_(torch.randn(8, 100, generator=generator))
        x, y = sketch(f, g)
        products.append(torch.stack([x @ y, x @ x]))
    measured = torch.stack(products)
    mean, error = measured.mean(0), measured.std(0) / math.sqrt(2000)
    assert error.max() < 0.02
    assert abs(mean[0] - (f[0] @ f[1]) * (g[0] @ g[1])) < 4 * error[0]
    assert abs(mean[1] - 1.0) < 4 * error[1]


def test_the_sketch_that_is_built_is_of_independent_standard_normal_numbers() -> None:
    """So that one large sketch keeps inner products, as many small ones do in the mean."""
    sketch = MultilinearMap(8, 6, 1 << 14)
    rows = torch.cat([sketch.features, sketch.predictions])
    assert rows.mean(1).abs().max() < 0.04
    torch.testing.assert_close(rows @ rows.T / sketch.out, torch.eye(14), atol=0.06, rtol=0.0)
    generator = torch.Generator().manual_seed(3)
    f, g = torch.randn(2, 8, generator=generator), torch.rand(2, 6, generator=generator)
    f, g = nn.functional.normalize(f, dim=1), nn.functional.normalize(g, dim=1)
    x, y = sketch(f, g)
    assert [float(x @ y), float(x @ x)] == pytest.approx([float((f[0] @ f[1]) * (g[0] @ g[1])), 1.0], abs=0.1)


def test_the_map_of_a_bottlenecks_features_is_exact_as_tllibs_is() -> None:
    torch.manual_seed(0)
    spec = {"name": "net", "args": {}, "size": 8, "stem": "default", "pooling": None}
    classes = [str(k) for k in range(31)]
    office = CDAN(Classifier(Backbone(Net(), spec, HALF, HALF), classes, structure=Structure(256)), hidden=8)
    assert not office.map.randomized and office.map.out == 7936 and office.notes == ()
    assert office.discriminator(torch.randn(2, 3, 7936)).shape == (2, 3)
    sketched = CDAN(
        Classifier(Backbone(Net(), spec, HALF, HALF), classes, structure=Structure(256)), hidden=8, map="sketch"
    )
    assert sketched.map.randomized and sketched.map.out == 4096


def test_a_sketched_map_is_said_in_one_line() -> None:
    assert method().notes == () == method(randomized_above=8, map="exact").notes
    (line,) = method(randomized_above=8).notes
    assert "\n" not in line and "a random sketch of 8 numbers of the map of 5 features x 3 classes" in line
    with pytest.raises(UserError, match=r"method\.randomized_above: expected 1 to"):
        method(randomized_above=0)


def test_the_sketch_is_saved_and_the_same_everywhere() -> None:
    torch.manual_seed(1)
    first = method(randomized_above=8)
    torch.manual_seed(2)
    second = method(randomized_above=8)
    saved = {name for name in first.state_dict() if name.startswith("map.")}
    assert saved == {"map.features", "map.predictions"}
    assert torch.equal(first.map.features, second.map.features)
    assert torch.equal(first.map.predictions, second.map.predictions)
    assert not any(name.startswith("map.") for name, _ in first.named_parameters())
    assert first.discriminator(torch.randn(2, 8, dtype=torch.float64)).shape == (2,)
    with torch.no_grad():
        first.map.features.fill_(7.0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.map.features, first.map.features)


def test_only_the_entropy_couples_samples() -> None:
    assert method().couples_samples
    assert not method(entropy=False).couples_samples


def scored(found: Drawn, entropy: bool) -> list[float]:
    """Loss at reversal 1, and the norms of its gradients: features, with entropies logits, discriminator."""
    cdan: Any = method(entropy=entropy)
    cdan.discriminator = scorer(35)
    loss, _ = cdan.domain_loss(found.features, found.logits, 1.0)
    leaves = [found.features, *([found.logits] if entropy else []), next(cdan.discriminator.parameters())]
    return [loss.item(), *gradient_norms(loss, *leaves)]


def test_it_is_the_authors_value() -> None:
    """c904cd3 `CDAN`; tllib c4aa59e ConditionalDomainAdversarialLoss is equal without entropies. Theirs are of log(p + 1e-5)."""
    found = drawn()
    assert scored(found, False) == pytest.approx([1.344646275588, 0.255343966405, 0.389636147120], rel=PEERS)
    authors = [1.406172237079, 0.267797115751, 0.069821932140, 0.404214501797]
    assert scored(found, True) == pytest.approx(authors, rel=1e-4)


def test_with_entropies_peers_differ_as_the_docstring_says() -> None:
    found = drawn()
    ours = scored(found, True)
    p = found.logits.detach().softmax(-1)
    weights = 1.0 + torch.exp((p * p.log()).sum(-1))
    guesses = scorer(35)((p[..., None] * found.features[:, :, None]).flatten(2))
    errors = torch.stack([nn.functional.softplus(-guesses[0]), nn.functional.softplus(guesses[1])])
    # tllib: one sum for both domains.
    jointly = (weights * errors).sum() / weights.sum()
    assert [jointly.item(), *gradient_norms(jointly, found.features)] == pytest.approx(
        [1.410681524064, 0.268489313226], rel=1e-4
    )
    assert abs(jointly.item() - ours[0]) > 1e-3
    # pytorch-adapt 1366df7 CDANNEHook: over the largest weight of each domain, and p is not detached in the map.
    attached = found.logits.softmax(-1)
    guesses = scorer(35)((attached[..., None] * found.features[:, :, None]).flatten(2))
    errors = torch.stack([nn.functional.softplus(-guesses[0]), nn.functional.softplus(guesses[1])])
    theirs = (weights / weights.amax(1, keepdim=True) * errors).mean(1)
    assert theirs.tolist() == pytest.approx([0.898209364650, 1.477465619204], rel=1e-4)
    (norm,) = gradient_norms(theirs.sum(), found.features)
    assert norm == pytest.approx(3.0 * 0.151215612344, rel=1e-4) and 1.6 < norm / ours[1] < 1.8


def test_the_sources_term_does_not_depend_on_the_targets_entropies() -> None:
    """What a joint normalisation of weights would break, at every certainty of the target."""
    cdan, (features, logits) = method(), tensors()
    found = []
    for scale in (0.0, 1.0, 50.0):
        scaled = torch.stack([logits[0], scale * logits[1]])
        loss, guesses = cdan.domain_loss(features, scaled, 1.0)
        of_features, of_logits = torch.autograd.grad(loss, (features, logits), retain_graph=True)
        h = scaled[1].detach().softmax(-1)
        weights = 1.0 + torch.exp(-torch.special.entr(h).sum(-1))
        target = (weights * nn.functional.softplus(guesses[1])).sum() / weights.sum()
        found.append((loss.item() - target.item() / 2.0, of_features[0], of_logits[0]))
    for value, of_features, of_logits in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-9)
        torch.testing.assert_close(of_features, found[0][1])
        torch.testing.assert_close(of_logits, found[0][2])
    assert float(found[0][1].abs().max()) > 1e-4 and float(found[0][2].abs().max()) > 1e-5
