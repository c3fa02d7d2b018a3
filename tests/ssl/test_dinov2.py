"""DINOv2's KoLeo against a double loop and lightly's, and its step against a plain one view by view."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import KoLeoLoss
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Views
from rootstock.ssl.dinov2 import DINOv2, koleo
from rootstock.ssl.parts.masked_teacher import view_tokens
from rootstock.ssl.parts.masks import true_indices
from rootstock.tests.ssl.cases import backbone, method, views
from rootstock.tests.ssl.parts.slow_prototypes import slow_crops_loss, slow_sinkhorn


def dinov2(**options: Any) -> DINOv2:
    return method("dinov2", "vit", **options).double().train()


def batch(made: nn.Module, n: int = 5, seed: int = 1) -> Views:
    return views(made, n, seed, torch.float64)


def points(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_koleo(z: Tensor) -> Tensor:
    """Pair by pair: minus the mean over points of the logarithm of the smallest distance to another one."""
    unit = [row / row.square().sum().sqrt() for row in z]
    logs = []
    for i, x in enumerate(unit):
        distances = [(x - y).square().sum().sqrt() for j, y in enumerate(unit) if j != i]
        logs.append(torch.stack(distances).min().log())
    return -torch.stack(logs).mean()


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (7, 4), (12, 2)])
def test_koleo_equals_a_double_loop_and_lightlys(n: int, dim: int) -> None:
    z = points(n, dim).requires_grad_()
    ours, slow = koleo(z), slow_koleo(z)
    assert ours.item() == pytest.approx(slow.item(), rel=1e-6)
    assert ours.item() == pytest.approx(KoLeoLoss()(z.detach()).item(), rel=1e-6)
    first, second = (torch.autograd.grad(loss, z)[0] for loss in (ours, slow))
    assert second.abs().max() > 1e-3
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)


def test_koleo_of_rows_adds_up_and_ignores_lengths() -> None:
    z = points(6, 4)
    whole = koleo(z)
    parts = [koleo(z, slice(start, stop)) for start, stop in ((0, 2), (2, 3), (3, 6))]
    torch.testing.assert_close((torch.stack(parts) * torch.tensor([2.0, 1.0, 3.0])).sum() / 6, whole)
    torch.testing.assert_close(koleo(z * torch.arange(1.0, 7.0)[:, None]), whole)


def test_koleo_is_least_where_points_are_spread_evenly() -> None:
    turns = 2 * math.pi * torch.arange(6, dtype=torch.float64) / 6
    even = torch.stack([turns.cos(), turns.sin()], 1)
    assert koleo(even).item() == pytest.approx(0.0, abs=1e-6)  # a hexagon's side is 1
    uneven = torch.stack([(0.8 * turns).cos(), (0.8 * turns).sin()], 1)
    assert koleo(uneven) > koleo(even)
    same = torch.ones(4, 3, requires_grad=True)
    collapsed = koleo(same)
    collapsed.backward()
    assert collapsed > 10 and same.grad is not None and bool(same.grad.isfinite().all())
    with pytest.raises(ValueError, match="N >= 2"):
        koleo(torch.ones(1, 3))


def test_koleo_of_half_precision_is_computed_in_float32() -> None:
    z = points(8, 16)
    assert koleo(z.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert koleo(z.float()).item() == pytest.approx(koleo(z).item(), rel=1e-4)


def slow_patch_loss(targets: Tensor, logits: list[Tensor], hidden: Tensor, temperature: float) -> Tensor:
    """targets: of the hidden patches of all views and images, in order, [M, K]. logits: of all patches, [N, L, K] for each view."""
    images, used = [], 0
    for v, of_view in enumerate(logits):
        for n in range(len(of_view)):
            terms = []
            for i in range(of_view.shape[1]):
                if hidden[v, n, i]:
                    terms.append(-(targets[used] * (of_view[n, i] / temperature).log_softmax(-1)).sum())
                    used += 1
            images.append(torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64))
    assert used == len(targets)
    return torch.stack(images).mean()


@pytest.mark.parametrize("with_local", [True, False])
def test_the_step_is_the_papers_view_by_view(with_local: bool) -> None:
    made = dinov2(
        temperature=0.2, teacher_temperature=0.05, warmup_teacher_temperature=0.05, patch_weight=0.8, koleo_weight=0.3,
        iterations=2,
    )  # fmt: skip
    made.mask.data.copy_(torch.linspace(-1, 1, 16))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # a teacher that is not the student
        for teacher in (made.backbone, made.teacher_head, made.teacher_patch_head):
            for parameter in teacher.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    given = batch(made)
    vit = made.student.model
    assert isinstance(vit, VisionTransformer)
    masks = made.masks(given)
    assert masks.any() and not masks.any(-1).all()

    with torch.no_grad():
        features, patches = view_tokens(made.backbone, given.images, None)
        targets = slow_sinkhorn(made.teacher_head(features).flatten(0, 1), 0.05, 2).unflatten(0, (2, 5))
        patch_targets = slow_sinkhorn(made.teacher_patch_head(patches)[masks], 0.05, 2)
    features, patches = view_tokens(made.student, given.images, None, masks, made.mask)
    crops = [*features]
    if with_local and given.local is not None:
        crops += [made.student(images) for images in given.local]
    said = torch.stack([made.head(crop) for crop in crops])
    class_loss = slow_crops_loss(targets, said, 0.2)
    patches_loss = slow_patch_loss(patch_targets, [made.patch_head(view) for view in patches], masks, 0.2)
    spread = slow_koleo(features[0]) + slow_koleo(features[1])
    slow = class_loss + 0.8 * patches_loss + 0.3 * spread
    weights = [made.mask, *made.student.parameters(), *made.head.parameters(), *made.patch_head.parameters()]
    expected = torch.autograd.grad(slow, weights)

    step = made(given if with_local else given._replace(local=None), 0.5)
    found = {name: step.metrics[name].item() for name in ("class_loss", "patch_loss", "koleo")}
    assert found["class_loss"] == pytest.approx(class_loss.item(), rel=1e-8)
    assert found["patch_loss"] == pytest.approx(patches_loss.item(), rel=1e-8)
    assert found["koleo"] == pytest.approx(spread.item(), rel=1e-5, abs=1e-7)
    assert step.loss.item() == pytest.approx(slow.item(), rel=1e-6)
    assert not any(metric.requires_grad for metric in step.metrics.values())
    step.loss.backward()
    for weight, gradient in zip(weights, expected, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-5, atol=1e-6)  # koleo's 1e-8 under its logarithm
    teachers = [made.backbone, made.teacher_head, made.teacher_patch_head]
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())


def test_targets_use_all_prototypes_equally() -> None:
    made = dinov2(iterations=60)
    given = batch(made, 12)
    index, hidden = true_indices(made.masks(given), 8)
    targets, patch_targets = made.targets(given.images, index, hidden, 0.5)
    for found, count in ((targets.flatten(0, 1), 24), (patch_targets[hidden], int(hidden.sum()))):
        torch.testing.assert_close(found.sum(1), torch.ones(count, dtype=torch.float64))
        share = torch.full((found.shape[1],), count / found.shape[1], dtype=torch.float64)
        torch.testing.assert_close(found.sum(0), share, rtol=0.02, atol=0.0)
    assert not patch_targets[~hidden].any()


def test_a_batch_without_a_hidden_patch_has_a_finite_gradient() -> None:
    made = dinov2(mask_probability=0.0)
    step = made(batch(made), 0.5)
    step.loss.backward()
    assert step.metrics["patch_loss"].item() == 0.0 and step.metrics["masked"].item() == 0.0
    gradients = [p.grad for p in made.parameters() if p.requires_grad]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


def test_temperatures_rise_and_both_heads_prototypes_thaw() -> None:
    made = dinov2(
        warmup_teacher_temperature=0.04, teacher_temperature=0.08, teacher_temperature_warmup=0.4, freeze_last_layer=0.2
    )
    given = batch(made)
    index, hidden = true_indices(made.masks(given), 8)
    features, _ = view_tokens(made.backbone, given.images, None)
    known = made.teacher_head(features).detach().flatten(0, 1)
    for progress, temperature in ((0.0, 0.04), (0.2, 0.06), (0.4, 0.08), (0.9, 0.08)):
        targets, _ = made.targets(given.images, index, hidden, progress)
        torch.testing.assert_close(targets.flatten(0, 1), slow_sinkhorn(known, temperature, 3))
    assert {id(p) for p in made.frozen(0.19)} == {id(made.head.weight), id(made.patch_head.weight)}
    assert made.frozen(0.2) == []


def test_what_is_exported_is_the_teacher_and_it_follows() -> None:
    student = backbone("vit")
    made = DINOv2(student, prototypes=10, patch_prototypes=8, hidden=8, bottleneck=4, patch_bottleneck=6, momentum=0.9)
    assert made.student is student and made.backbone is not student
    assert made.views == 2 and made.takes_local and made.couples_samples
    shapes = [tuple(head.weight.shape) for head in (made.head, made.patch_head)]
    assert shapes == [(10, 4), (8, 6)]
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (made.backbone, made.student),
        (made.teacher_head, made.head),
        (made.teacher_patch_head, made.patch_head),
    ]
    before = [p.clone() for teacher, _ in pairs for p in teacher.parameters()]
    with torch.no_grad():
        for _, own in pairs:
            for parameter in own.parameters():
                parameter += 1.0
    made.after_step(0.5)  # half the cosine: momentum (0.9 + 1) / 2
    after = [p for teacher, _ in pairs for p in teacher.parameters()]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old + 0.05, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in after)


def test_every_trained_parameter_gets_a_gradient() -> None:
    made = dinov2()
    made(batch(made), 0.5).loss.backward()
    assert [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None] == []


def test_training_lowers_both_losses() -> None:
    made = method("dinov2", "vit", mask_probability=1.0).train()
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(15):
        given = views(made, 8)
        out = made(given._replace(draws=Draws(0, torch.arange(8) + 8 * step)), 0.5)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        made.after_step(0.5)
        losses.append((out.metrics["class_loss"].item(), out.metrics["patch_loss"].item()))
    assert losses[-1][0] < losses[0][0] and losses[-1][1] < losses[0][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature"),
        ({"teacher_temperature": -1.0}, "method.teacher_temperature"),
        ({"warmup_teacher_temperature": 0.0}, "method.warmup_teacher_temperature"),
        ({"patch_weight": 0.0}, "method.patch_weight"),
        ({"koleo_weight": -0.1}, "method.koleo_weight"),
        ({"iterations": 0}, "method.iterations"),
        ({"mask_ratio": (0.5, 0.1)}, "method.mask_ratio"),
        ({"mask_probability": -0.5}, "method.mask_probability"),
        ({"momentum": 1.1}, "method.momentum"),
        ({"freeze_last_layer": 2.0}, "method.freeze_last_layer"),
        ({"prototypes": 1}, "method.prototypes"),
        ({"patch_prototypes": 1}, "method.patch_prototypes"),
        ({"patch_bottleneck": 1}, "method.patch_bottleneck"),
    ],
)
def test_values_that_make_no_method_are_refused(options: dict[str, Any], message: str) -> None:
    sizes = {"prototypes": 10, "patch_prototypes": 8, "hidden": 8, "bottleneck": 4, "patch_bottleneck": 4}
    with pytest.raises(UserError, match=message):
        DINOv2(backbone("vit"), **{**sizes, **options})


def test_what_has_no_patches_or_no_neighbours_is_refused() -> None:
    with pytest.raises(UserError, match="method: dinov2 needs a ViT"):
        DINOv2(backbone("conv"))
    made = dinov2()
    with pytest.raises(UserError, match=r"optim.batch_size: dinov2 needs at least 2"):
        made(batch(made, 1), 0.0)
