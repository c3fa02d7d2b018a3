"""DINO's step against a plain one crop by crop, and its teacher, centre and schedules."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.method import Method, Views
from rootstock.core.model.norm import PositionBatchNorm, convert_batch_norms
from rootstock.ssl.dino import DINO, dino_targets
from rootstock.tests.ssl.cases import backbone, method, views
from rootstock.tests.ssl.parts.slow_prototypes import slow_crops_loss

HEAD: dict[str, Any] = {"prototypes": 7, "hidden": 12, "bottleneck": 6, "head_norm": False}


def dino(kind: str = "vit", **options: Any) -> DINO:
    return method("dino", kind, **{**HEAD, **options}).double().train()


def batch(made: DINO, n: int = 4, seed: int = 1) -> Views:
    return views(made, n, seed, torch.float64)


def outputs(network: nn.Module, head: nn.Module, images: Tensor) -> Tensor:
    """[V, N, ...] -> [V, N, K], view by view: right without BatchNorm."""
    return torch.stack([head(network(view)) for view in images])


def test_targets_are_centred_and_sharpened() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, center = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 5), (5,)))
    found = dino_targets(logits, center, 0.2)
    for v in range(2):
        for n in range(3):
            raised = [((logits[v, n, k] - center[k]) / 0.2).exp().item() for k in range(5)]
            assert found[v, n].tolist() == pytest.approx([value / sum(raised) for value in raised], rel=1e-10)
    # Centring removes what is added to the logits of all images.
    shift = torch.arange(5.0)
    torch.testing.assert_close(dino_targets(logits + shift, center + shift, 0.2), found)
    assert dino_targets(logits.bfloat16(), center.float(), 0.02).dtype == torch.float32


@pytest.mark.parametrize("with_local", [True, False])
def test_the_step_is_the_papers_crop_by_crop(with_local: bool) -> None:
    made = dino(temperature=0.2, teacher_temperature=0.05, warmup_teacher_temperature=0.05, freeze_last_layer=0.0)
    made.center.copy_(torch.linspace(-0.2, 0.2, 7))
    with torch.no_grad():  # a teacher that is not the student
        for parameter in [*made.backbone.parameters(), *made.teacher_head.parameters()]:
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    given = batch(made)
    crops = [given.images] + ([given.local] if with_local and given.local is not None else [])
    known = outputs(made.backbone, made.teacher_head, given.images).detach()
    said = torch.cat([outputs(made.student, made.head, images) for images in crops])
    targets = ((known - made.center) / 0.05).softmax(-1)
    slow = slow_crops_loss(targets, said, 0.2)
    weights = [*made.student.parameters(), *made.head.parameters()]
    expected = torch.autograd.grad(slow, weights)
    theirs = DINOLoss(7, teacher_temp=0.05, student_temp=0.2, center_momentum=0.9).double()
    theirs.center.copy_(made.center)
    before = made.center.clone()

    step = made(given if with_local else given._replace(local=None), 0.5)
    assert step.loss.item() == pytest.approx(slow.item(), rel=1e-10)
    assert step.loss.item() == pytest.approx(theirs([*known], [*said], teacher_temp=0.05).item(), rel=1e-6)
    step.loss.backward()
    for weight, gradient in zip(weights, expected, strict=True):
        assert weight.grad is not None
        # timm resamples the positions of local crops in float32.
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-6, atol=1e-7)
    moved = 0.9 * before + 0.1 * known.mean((0, 1))
    assert torch.equal(made.center, before)  # until the step is judged
    Method.after_step(made, 0.0)
    torch.testing.assert_close(made.center, moved, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(theirs.center.flatten(), moved, rtol=1e-6, atol=1e-8)
    assert all(parameter.grad is None for parameter in [*made.backbone.parameters(), *made.teacher_head.parameters()])


def test_the_teacher_sees_whole_views_alone() -> None:
    made = dino()
    seen: dict[str, list[int]] = {"teacher": [], "student": []}
    made.backbone.register_forward_pre_hook(lambda _, images: seen["teacher"].append(images[0].shape[-1]))
    made.student.register_forward_pre_hook(lambda _, images: seen["student"].append(images[0].shape[-1]))
    given = batch(made)
    assert given.local is not None
    made(given, 0.0)
    assert seen == {"teacher": [16], "student": [16, 8]}


def test_what_is_exported_is_the_teacher() -> None:
    student = backbone("vit")
    made = DINO(student, prototypes=7, hidden=12, bottleneck=6, momentum=0.9)
    assert made.student is student and made.backbone is not student
    assert not any(parameter.requires_grad for parameter in made.backbone.parameters())
    assert all(parameter.requires_grad for parameter in made.head.parameters())
    pairs = [(made.backbone, made.student), (made.teacher_head, made.head)]
    before = [
        (t.clone(), s) for teacher, own in pairs for t, s in zip(teacher.parameters(), own.parameters(), strict=True)
    ]
    assert all(torch.equal(t, s) for t, s in before)
    with torch.no_grad():
        for _, s in before:
            s += 1.0
    made.after_step(0.5)  # half the cosine: momentum (0.9 + 1) / 2
    after = [t for teacher, _ in pairs for t in teacher.parameters()]
    for (old, _), new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old + 0.05, rtol=1e-5, atol=1e-6)
    kept = [t.clone() for t in after]
    made.after_step(1.0)  # momentum 1
    assert all(torch.equal(x, y) for x, y in zip(kept, after, strict=True))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_teachers_temperature_rises(as_tensor: bool) -> None:
    made = dino(warmup_teacher_temperature=0.04, teacher_temperature=0.08, teacher_temperature_warmup=0.4)
    given = batch(made)
    known = outputs(made.backbone, made.teacher_head, given.images).detach()
    for progress, temperature in ((0.0, 0.04), (0.1, 0.05), (0.3, 0.07), (0.4, 0.08), (0.9, 0.08)):
        made.center.zero_()
        clock: Any = torch.tensor(progress, dtype=torch.float64) if as_tensor else progress
        torch.testing.assert_close(made.targets(given.images, clock), (known / temperature).softmax(-1))


def test_the_last_layer_stands_still_at_first() -> None:
    made = dino(freeze_last_layer=0.25)
    for progress, frozen in ((0.0, True), (0.24, True), (0.25, False), (0.9, False)):
        held = made.frozen(progress)
        assert [p is made.head.weight for p in held] == [True] * frozen


def test_a_bad_batch_leaves_the_centre_finite() -> None:
    made = dino()
    given = batch(made)
    made(given, 0.0)
    Method.after_step(made, 0.0)
    before = made.center.clone()
    made(given._replace(images=given.images.clone().index_fill_(1, torch.tensor([1]), float("nan"))), 0.1)
    Method.after_step(made, 0.0)
    assert torch.equal(made.center, before)


def test_the_heads_batchnorm_sees_all_crops_together() -> None:
    made = dino("conv", head_norm=True)
    given = batch(made)
    assert given.local is not None
    first, norm = made.head.mlp[0], made.head.mlp[1]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None
    made(given, 0.0)
    features = torch.cat([made.student(given.images.flatten(0, 1)), made.student(given.local.flatten(0, 1))])
    torch.testing.assert_close(norm.running_mean, 0.1 * first(features).mean(0), rtol=1e-8, atol=1e-12)


def test_groups_of_batchnorm_hold_their_images_with_all_crops() -> None:
    """The targets of the first group's images do not depend on the images after them."""
    made = dino("conv", head_norm=True)
    convert_batch_norms(made, "group", 2, made.rows_per_position)
    given = batch(made)

    def embedded(rows: slice) -> Tensor:
        made.center.zero_()
        assert given.local is not None
        return made.targets(given.images[:, rows], 0.0)

    torch.testing.assert_close(embedded(slice(0, 4))[:, :2], embedded(slice(0, 2)), rtol=1e-9, atol=1e-12)
    assert sum(isinstance(module, PositionBatchNorm) for module in made.head.modules()) == 2


def test_metrics_are_detached_and_tell_of_the_teacher() -> None:
    made = dino()
    step = made(batch(made), 0.0)
    assert not any(metric.requires_grad or metric.ndim for metric in step.metrics.values())
    assert step.loss.requires_grad and step.loss.ndim == 0
    expected = {"feature_std", "embedding_rank", "positive_cosine", "target_entropy", "target_kl", "prototypes_used"}
    assert expected <= step.metrics.keys()
    total = step.metrics["target_entropy"] + step.metrics["target_kl"]
    assert total.item() == pytest.approx(step.loss.item(), rel=1e-5)


def test_the_state_holds_the_centre() -> None:
    made, other = dino(), dino(seed=1)
    made(batch(made), 0.0)
    made.after_step(0.0)
    assert made.center.abs().max() > 0
    other.load_state_dict(made.state_dict())
    given = batch(made, seed=2)
    assert torch.equal(made(given, 0.5).loss, other(given, 0.5).loss)


def test_training_brings_student_and_teacher_together() -> None:
    made = dino(freeze_last_layer=0.0, momentum=0.9, teacher_temperature=0.07, warmup_teacher_temperature=0.07)
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    given = batch(made, 8)
    found: list[dict[str, float]] = []
    for _ in range(30):
        step = made(given, 0.5)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        made.after_step(0.5)
        found.append({name: value.item() for name, value in step.metrics.items()})
    assert found[-1]["target_kl"] < 0.5 * found[0]["target_kl"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prototypes", 1),
        ("layers", 0),
        ("temperature", 0.0),
        ("teacher_temperature", -0.1),
        ("warmup_teacher_temperature", float("nan")),
        ("teacher_temperature_warmup", 1.5),
        ("center_momentum", -0.1),
        ("momentum", 1.1),
        ("freeze_last_layer", 2.0),
    ],
)
def test_values_that_make_no_method_are_refused(key: str, value: float) -> None:
    options: dict[str, Any] = {**HEAD, key: value}
    with pytest.raises(UserError, match=rf"method\.{key}: "):
        DINO(backbone("vit"), **options)


def test_the_published_head_is_the_default() -> None:
    made = DINO(backbone("vit"), prototypes=64)
    linear = [(m.in_features, m.out_features) for m in made.head.mlp if isinstance(m, nn.Linear)]
    assert linear == [(16, 2048), (2048, 2048), (2048, 256)]
    z = made.head.embed(torch.randn(3, 16))
    torch.testing.assert_close(F.normalize(z, dim=-1), z)
