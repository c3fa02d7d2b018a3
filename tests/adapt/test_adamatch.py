"""AdaMatch against loops: aligned pseudo-labels, the relative threshold, the ramp, and logits between two normalisations."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rootstock.adapt.adamatch import AdaMatch, ramp_up, with_frequencies
from rootstock.adapt.fixmatch import PseudoLabels, consistency
from rootstock.core.errors import UserError
from rootstock.core.model import norm
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.domains import SOURCE, TARGET
from rootstock.core.model.norm import SOURCE_LAYER
from rootstock.launch.doctor.equality import classifier, domain_pair
from rootstock.launch.doctor.trial_steps import backbone
from rootstock.tests.adapt.one_update import PEERS, Drawn, drawn, gradient_norms


def built(**keys: Any) -> AdaMatch:
    torch.manual_seed(0)
    method = AdaMatch(classifier(), **keys).double()
    torch.nn.init.normal_(method.classifier.head.weight)
    norm.convert_batch_norms(method, "local", 0, method.rows_per_position)
    return method


def softmax(row: Tensor) -> list[float]:
    powers = row.exp().tolist()
    return [value / sum(powers) for value in powers]


def slow(
    source: Tensor, target: Tensor, tau: float, kept: list[list[float]] | None = None, momentum: float = 0.0
) -> tuple[list[int], list[bool], float]:
    """The labels, which of them count, and the threshold, one image and one class at a time.

    kept: mean predictions of source and target over earlier steps, of which `momentum` stays; this batch is added.
    """
    known, guessed = [softmax(row) for row in source], [softmax(row) for row in target]
    n, classes = len(known), range(len(known[0]))
    least = tau * sum(max(row) for row in known) / n
    means = [[sum(row[k] for row in rows) / n for k in classes] for rows in (known, guessed)]
    if kept is not None:
        means = [
            [momentum * old + (1 - momentum) * new for old, new in zip(*pair, strict=True)]
            for pair in zip(kept, means, strict=True)
        ]
        kept[:] = means
    ratio = [(1e-6 + means[0][k]) / (1e-6 + means[1][k]) for k in classes]
    moved = [[row[k] * ratio[k] for k in classes] for row in guessed]
    moved = [[value / sum(row) for value in row] for row in moved]
    return [max(classes, key=row.__getitem__) for row in moved], [max(row) >= least for row in moved], least


def test_pseudo_labels_equal_loops() -> None:
    method = built().train()
    method.distributions = torch.zeros(2, 5, dtype=torch.float64)
    source, target = drawn().logits.detach()
    pseudo, least = method.labels(source, target)
    labels, confident, right = slow(source, target, 0.9)
    assert pseudo.labels.tolist() == labels and pseudo.confident.tolist() == confident and any(confident)
    assert least.item() == pytest.approx(right)
    assert labels != target.argmax(1).tolist()  # alignment changes some of them


def test_alignment_moves_the_target_towards_the_sources_classes() -> None:
    guessed = torch.tensor([[0.7, 0.3], [0.6, 0.4]], dtype=torch.float64)
    same = with_frequencies(guessed, guessed.mean(0), guessed.mean(0))
    torch.testing.assert_close(same, guessed)
    found = with_frequencies(guessed, torch.tensor([0.2, 0.8]).double(), guessed.mean(0))
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))
    assert bool((found[:, 1] > guessed[:, 1]).all())
    assert with_frequencies(guessed, torch.zeros(2), torch.zeros(2)).isfinite().all()  # classes that nobody predicts


def test_means_over_steps_are_kept_in_a_buffer() -> None:
    method = built(momentum=0.75).train()
    method.distributions = torch.full((2, 5), 0.2, dtype=torch.float64)
    expected = [[0.2] * 5, [0.2] * 5]
    for seed in range(2):
        logits = drawn(6 + seed).logits.detach()
        method.labels(*logits)
        method.after_step(0.5)
        for d in range(2):
            rows = [softmax(row) for row in logits[d]]
            now = [sum(row[k] for row in rows) / len(rows) for k in range(5)]
            expected[d] = [0.75 * old + 0.25 * new for old, new in zip(expected[d], now, strict=True)]
    torch.testing.assert_close(method.distributions, torch.tensor(expected, dtype=torch.float64))
    before = method.distributions.clone()
    method.labels(torch.full((4, 5), torch.nan), torch.zeros(4, 5))
    method.after_step(0.5)
    assert torch.equal(method.distributions, before)
    assert "distributions" in method.state_dict()


def test_the_ramp() -> None:
    assert [ramp_up(t) for t in (0.0, 0.25, 0.5, 0.9)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert ramp_up(torch.tensor(0.125)).item() == pytest.approx(ramp_up(0.125))  # pyright: ignore[reportAttributeAccessIssue]


def test_source_logits_lie_between_those_of_two_normalisations() -> None:
    method, plain = built().train(), built(interpolation=False).train()
    batch = domain_pair(method, 6, 1, torch.float64)
    views = torch.stack([batch.source.images, *batch.source.more, batch.target.images, *batch.target.more])
    joint = method.classifier.head(method.classifier.encode(views))[:2]
    alone = method.classifier.head(method.classifier.encode(views[:2]))
    found = method.interpolated(joint, views[:2], batch.source.draws)
    assert bool((found >= torch.minimum(joint, alone)).all() and (found <= torch.maximum(joint, alone)).all())
    share = ((found - alone) / (joint - alone)).detach()
    assert float(share.std()) > 0.05 and len(share.flatten().unique()) > 30  # each logit has its own
    torch.testing.assert_close(found, method.interpolated(joint, views[:2], batch.source.draws))
    assert torch.equal(plain.interpolated(joint, views[:2], batch.source.draws), joint)
    for made in (method, plain):  # the forward of the source alone moves no running statistics
        norm.commit(norm.layers(made), keep=False)
        made(batch, 0.5)
        assert all(len(layer.pending) == 1 for layer in norm.layers(made))


def test_the_loss_of_a_batch_and_its_control() -> None:
    method, control = built(threshold=0.5, trade_off=0.7).eval(), built(threshold=0.5, trade_off=0.0).eval()
    batch = domain_pair(method, 6, 1, torch.float64)
    known = [method.classifier(images).detach() for images in (batch.source.images, *batch.source.more)]
    weak, strong = (method.classifier(images).detach() for images in (batch.target.images, *batch.target.more))
    labels, confident, _ = slow(known[0], weak, 0.5)  # in evaluation's BatchNorm both normalisations are the same
    errors = [-row.log_softmax(1)[range(6), batch.source.labels].mean().item() for row in known]
    apart = sum(-float(strong[n].log_softmax(0)[labels[n]]) for n in range(6) if confident[n]) / 6
    assert apart > 0.0
    for progress, mu in ((0.0, 0.0), (0.25, 0.5), (1.0, 1.0)):
        step = method(batch, progress)
        assert step.loss.item() == pytest.approx(sum(errors) / 2 + 0.7 * mu * apart, rel=1e-6)
        assert control(batch, progress).loss.item() == pytest.approx(sum(errors) / 2, rel=1e-6)
    assert step.metrics["confident"].item() == pytest.approx(sum(confident) / 6)
    assert step.metrics.keys() == control(batch, 1.0).metrics.keys()


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_the_loss_of_a_training_step_equals_loops(momentum: float) -> None:
    """Pseudo-labels and errors are of interpolated logits; classes are aligned by the means that earlier steps left."""
    method = built(threshold=0.8, trade_off=0.7, momentum=momentum).train()
    kept = [[1 / 3] * 3, [1 / 3] * 3]
    for seed in range(4):
        batch = domain_pair(method, 6, seed, torch.float64)
        views = torch.stack([batch.source.images, *batch.source.more, batch.target.images, *batch.target.more])
        joint = method.classifier(views.flatten(0, 1)).detach().unflatten(0, (4, 6))  # BatchNorm is in training mode
        alone = method.classifier(views[:2].flatten(0, 1)).detach().unflatten(0, (2, 6))
        share = batch.source.draws.uniform("interpolation", 2, 3).double()
        known = torch.zeros(2, 6, 3, dtype=torch.float64)
        for v, n, k in itertools.product(range(2), range(6), range(3)):
            known[v, n, k] = share[n, v, k] * joint[v, n, k] + (1 - share[n, v, k]) * alone[v, n, k]
        labels, confident, least = slow(known[0], joint[2], 0.8, kept, momentum)
        right = [-math.log(softmax(known[v, n])[int(batch.source.labels[n])]) for v in range(2) for n in range(6)]
        apart = sum(-math.log(softmax(joint[3, n])[labels[n]]) for n in range(6) if confident[n]) / 6
        step = method(batch, 1.0)
        method.after_step(1.0)
        assert step.loss.item() == pytest.approx(sum(right) / 12 + 0.7 * apart, rel=1e-9)
        assert step.metrics["threshold"].item() == pytest.approx(least, rel=1e-6)


def test_with_a_batchnorm_for_each_domain_both_normalisations_of_the_source_are_one() -> None:
    """The source is normalised by its own layers, with and without the target beside it."""
    torch.manual_seed(0)
    network = Classifier(backbone("conv"), ["a", "b", "c"], batchnorm="own")
    for name, parameter in network.named_parameters():
        if SOURCE_LAYER in name:
            torch.nn.init.normal_(parameter)
    method = AdaMatch(network).double().train()
    batch = domain_pair(method, 6, 1, torch.float64)
    views = torch.stack([batch.source.images, *batch.source.more, batch.target.images, *batch.target.more])
    joint = network.head(network.encode(views, None, (SOURCE, SOURCE, TARGET, TARGET)))[:2]
    torch.testing.assert_close(method.interpolated(joint, views[:2], batch.source.draws), joint)


def test_no_confident_image_leaves_the_source_alone() -> None:
    method = built(alignment=False).eval()
    pseudo, _ = method.labels(100.0 * torch.eye(3), torch.zeros(4, 3))
    assert not pseudo.confident.any()


def test_a_momentum_above_1_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.momentum: expected a number from 0 to 1, got 1.5"):
        built(momentum=1.5)


def no_draws(method: AdaMatch, found: Drawn) -> tuple[Tensor, Tensor]:
    """The losses of source and target on the drawn logits: weak views are `logits`, strong ones `adversary`."""
    pseudo, _ = method.labels(found.logits[0].detach(), found.logits[1].detach())
    known = (cross_entropy(found.logits[0], found.labels) + cross_entropy(found.adversary[0], found.labels)) / 2
    return known, consistency(found.adversary[1], pseudo)


@pytest.mark.parametrize(
    ("threshold", "value", "counts", "length"),
    [(0.9, 0.638447555797, 5, 0.211388639019), (0.6, 1.649044925686, 10, 0.267477862104)],
)
def test_it_is_the_authors_value(threshold: float, value: float, counts: int, length: float) -> None:
    """7a0b40c loss_function with the means of the batch: both losses, the threshold, who counts, norms of the sum's gradient."""
    method, found = built(threshold=threshold).train(), drawn()
    method.distributions = torch.full((2, 5), 0.2, dtype=torch.float64)
    pseudo, least = method.labels(*found.logits.detach())
    assert least.item() == pytest.approx(threshold * 0.693890450742, rel=PEERS)
    assert int(pseudo.confident.sum()) == counts and pseudo.labels.tolist() == [4, 0, 2, 3, 0, 1, 1, 1, 4, 0, 2, 3]
    known, apart = no_draws(method, found)
    norms = gradient_norms(known + apart, found.logits, found.adversary)
    assert [known.item(), apart.item(), *norms] == pytest.approx(
        [2.784064518276, value, 0.163051727146, length], rel=PEERS
    )


def test_an_empty_mask_gives_a_loss_of_0_and_finite_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is over the images that count, the divisor the number of all: not 0 / 0."""
    method = built(interpolation=False).eval()
    nobody = PseudoLabels(torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.bool))
    monkeypatch.setattr(method, "labels", lambda source, target: (nobody, torch.ones(())))
    batch = domain_pair(method, 6, 1, torch.float64)
    step = method(batch, 1.0)
    alone = built(interpolation=False, trade_off=0.0).eval()(batch, 1.0)
    assert step.metrics["consistency_loss"].item() == 0.0 and step.metrics["confident"].item() == 0.0
    assert step.loss.item() == pytest.approx(alone.loss.item(), rel=1e-12)
    gradients = torch.autograd.grad(step.loss, list(method.parameters()), retain_graph=True)
    assert all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)
    strong = drawn().adversary
    loss = consistency(strong[1, :6], nobody)
    (gradient,) = torch.autograd.grad(loss, strong)
    assert loss.item() == 0.0 and not gradient.any()
