"""SwAV's step against loops and lightly's loss, and the content of its queue."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import SwaVLoss
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.method import Method, Views
from rootstock.ssl.swav import SwAV
from rootstock.tests.ssl.cases import backbone, method, views
from rootstock.tests.ssl.parts.slow_prototypes import slow_crops_loss, slow_sinkhorn

SMALL: dict[str, Any] = {"projection": [12, 8], "prototypes": 10, "queue": 0, "freeze_prototypes": 0.0}


def swav(kind: str = "vit", **options: Any) -> SwAV:
    return method("swav", kind, **{**SMALL, **options}).double().train()


def batch(made: SwAV, n: int = 4, seed: int = 1) -> Views:
    return views(made, n, seed, torch.float64)


def embedded(made: SwAV, given: Views) -> Tensor:
    """[V + L, N, E] of length 1: whole views and local crops are encoded in one forward each, then all go through the head in one."""
    crops = [given.images] if given.local is None else [given.images, given.local]
    features = torch.cat([made.backbone(images.flatten(0, 1)).unflatten(0, images.shape[:2]) for images in crops])
    return F.normalize(made.projector(features.flatten(0, 1)), dim=1).unflatten(0, features.shape[:2])


@pytest.mark.parametrize("with_local", [True, False])
@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_the_step_is_the_papers_crop_by_crop(kind: str, with_local: bool) -> None:
    made = swav(kind, temperature=0.2, epsilon=0.07)
    given = batch(made)
    given = given if with_local else given._replace(local=None)
    logits = embedded(made, given) @ made.prototypes.T
    codes = torch.stack([slow_sinkhorn(view.detach(), 0.07, 3) for view in logits[:2]])
    slow = slow_crops_loss(codes, logits, 0.2)
    expected = torch.autograd.grad(slow, [*made.parameters()])
    theirs = SwaVLoss(temperature=0.2, sinkhorn_iterations=3, sinkhorn_epsilon=0.07)([*logits[:2]], [*logits[2:]])

    step = made(given, 0.5)
    assert step.loss.item() == pytest.approx(slow.item(), rel=1e-10)
    assert step.loss.item() == pytest.approx(theirs.item(), rel=1e-10)
    step.loss.backward()
    for parameter, gradient in zip(made.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-11)


def test_codes_use_all_prototypes_where_nearest_ones_would_not() -> None:
    made = swav(prototypes=4, iterations=50)
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(
        made.prototypes.detach()[0] + 0.1 * torch.randn(2, 16, 8, generator=generator, dtype=torch.float64), dim=-1
    )
    logits = z @ made.prototypes.T
    assert logits.argmax(-1).eq(0).all()
    used = made.codes(z, logits, 0.0).sum(1)
    torch.testing.assert_close(used, torch.full((2, 4), 4.0, dtype=torch.float64), rtol=0.05, atol=0)


def test_the_queue_takes_part_once_it_is_full_and_due() -> None:
    made = swav(queue=6, queue_from=0.5)
    z = F.normalize(torch.randn(4, 2, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
    logits = [step @ made.prototypes.T.detach() for step in z]
    plain = [torch.stack([slow_sinkhorn(view, 0.05, 3) for view in step]) for step in logits]

    torch.testing.assert_close(made.codes(z[0], logits[0], 0.9), plain[0])  # empty
    Method.after_step(made, 0.0)
    assert torch.equal(made.queue[:, :4], z[0]) and not made.queue[:, 4:].any()
    torch.testing.assert_close(made.codes(z[1], logits[1], 0.9), plain[1])  # four of six
    Method.after_step(made, 0.0)
    assert torch.equal(made.queue, torch.cat([z[1], z[0, :, :2]], 1))
    torch.testing.assert_close(made.codes(z[2], logits[2], 0.4), plain[2])  # full, not yet due
    Method.after_step(made, 0.0)
    queue = made.queue.clone()
    assert torch.equal(queue, torch.cat([z[2], z[1, :, :2]], 1))

    found = made.codes(z[3], logits[3], 0.5)
    together = torch.cat([logits[3], queue @ made.prototypes.T.detach()], 1)
    expected = torch.stack([slow_sinkhorn(view, 0.05, 3)[:4] for view in together])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain[3], rtol=0.01)


def test_the_queue_of_a_step_is_lightlys() -> None:
    made = swav(queue=6)
    made(batch(made, 6), 0.1)
    Method.after_step(made, 0.0)
    assert made.queue[:, -1].any()
    given = batch(made, 4, seed=2)
    logits = embedded(made, given) @ made.prototypes.T
    waiting = made.queue.clone() @ made.prototypes.T
    theirs = SwaVLoss(0.1, 3, 0.05)([*logits[:2]], [*logits[2:]], [*waiting])
    assert made(given, 0.2).loss.item() == pytest.approx(theirs.item(), rel=1e-9)


def test_a_queue_shorter_than_a_batch_holds_its_first_images() -> None:
    made = swav(queue=3)
    given = batch(made, 5)
    made(given, 0.0)
    Method.after_step(made, 0.0)
    torch.testing.assert_close(made.queue, embedded(made, given)[:2, :3].detach())


def test_what_is_not_finite_stays_out_of_the_queue() -> None:
    made = swav(queue=4)
    given = batch(made)
    made(given, 0.0)
    Method.after_step(made, 0.0)
    before = made.queue.clone()
    assert before.any()
    made(given._replace(images=given.images.clone().index_fill_(1, torch.tensor([1]), float("nan"))), 0.1)
    Method.after_step(made, 0.0)
    assert torch.equal(made.queue, before)


def test_the_state_holds_the_queue_and_only_a_queue_that_there_is() -> None:
    assert "queue" not in swav().state_dict()
    made, other = swav(queue=4), swav(queue=4, seed=1)
    made(batch(made), 0.0)
    made.after_step(0.0)
    assert made.queue.any()
    other.load_state_dict(made.state_dict())
    given = batch(made, seed=2)
    assert torch.equal(made(given, 0.5).loss, other(given, 0.5).loss)
    assert torch.equal(made.queue, other.queue)


def test_prototypes_have_length_one_from_the_start_and_after_each_step() -> None:
    made = swav()
    ones = torch.ones(10, dtype=torch.float64)
    torch.testing.assert_close(made.prototypes.norm(dim=1), ones, rtol=1e-6, atol=0)
    with torch.no_grad():
        made.prototypes.mul_(torch.linspace(0.5, 2.0, 10)[:, None])
    direction = F.normalize(made.prototypes.detach(), dim=1)
    made.after_step(0.0)
    torch.testing.assert_close(made.prototypes.norm(dim=1), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(made.prototypes.detach(), direction, rtol=1e-12, atol=0)


def test_the_prototypes_stand_still_at_first() -> None:
    made = swav(freeze_prototypes=0.25, queue=4, queue_from=0.1)
    for progress, frozen in ((0.0, True), (0.24, True), (0.25, False), (0.9, False)):
        assert [p is made.prototypes for p in made.frozen(progress)] == [True] * frozen


def test_the_heads_layers() -> None:
    made = swav(projection=[12, 10, 8])
    kinds = [type(m).__name__ for m in made.projector.layers]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    published = SwAV(backbone("vit"), prototypes=64)
    linear = [(m.in_features, m.out_features) for m in published.projector.modules() if isinstance(m, nn.Linear)]
    assert linear == [(16, 2048), (2048, 128)] and published.prototypes.shape == (64, 128)


def test_metrics_are_detached() -> None:
    made = swav()
    step = made(batch(made), 0.0)
    assert not any(metric.requires_grad or metric.ndim for metric in step.metrics.values())
    assert {"feature_std", "embedding_rank", "target_entropy", "target_kl", "prototypes_used"} <= step.metrics.keys()
    assert 1.0 < step.metrics["prototypes_used"] <= 10.0 + 1e-4


def test_training_brings_crops_together() -> None:
    made = swav()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.5)
    given = batch(made, 8)
    losses: list[float] = []
    for _ in range(30):
        loss = made(given, 0.5).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        made.after_step(0.5)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("projection", []),
        ("prototypes", 1),
        ("temperature", 0.0),
        ("epsilon", -0.1),
        ("iterations", 0),
        ("freeze_prototypes", 1.5),
        ("queue", -1),
        ("queue_from", float("nan")),
    ],
)
def test_values_that_make_no_method_are_refused(key: str, value: Any) -> None:
    options: dict[str, Any] = {**SMALL, key: value}
    with pytest.raises(UserError, match=rf"method\.{key}: "):
        SwAV(backbone("vit"), **options)
