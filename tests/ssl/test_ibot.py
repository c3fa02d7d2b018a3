"""iBOT's losses against loops and lightly's, its step against a plain one view by view, and which patches student and teacher see."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import IBOTPatchLoss
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Method, Views
from rootstock.core.model.vit_tokens import take, transform
from rootstock.ssl.ibot import IBOT
from rootstock.ssl.parts.masked_teacher import patch_loss, view_tokens
from rootstock.ssl.parts.masks import true_indices
from rootstock.tests.ssl.cases import backbone, method, views
from rootstock.tests.ssl.parts.slow_prototypes import slow_crops_loss

K = 10


def ibot(**options: Any) -> IBOT:
    return method("ibot", "vit", **options).double().train()


def batch(made: nn.Module, n: int = 5, seed: int = 1) -> Views:
    return views(made, n, seed, torch.float64)


def disturb(*modules: nn.Module) -> None:
    """A teacher that is not the student."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def masked_by_hand(images: Tensor, mask: Tensor, hidden: Tensor, vit: VisionTransformer) -> Tensor:
    """Tokens [N, 1 + L, D] of images [N, C, H, W]; the patches that are hidden, bool [N, L], are `mask`."""
    assert vit.cls_token is not None and vit.pos_embed is not None
    patches = vit.patch_embed(images).flatten(1, 2).clone()
    rows = []
    for n in range(len(images)):
        row = [mask if hidden[n, i] else patches[n, i] for i in range(patches.shape[1])]
        rows.append(torch.stack([vit.cls_token[0, 0], *row]) + vit.pos_embed[0])
    return transform(vit, torch.stack(rows))


def slow_patch_loss(known: list[Tensor], said: Tensor, hidden: Tensor, temperature: float) -> Tensor:
    """Patch by patch; known: targets of all patches, [N, L, K] for each view. Averaged over an image's hidden patches, then images."""
    images = []
    for v in range(len(said)):
        for n in range(said.shape[1]):
            terms = [
                -(known[v][n, i] * (said[v, n, i] / temperature).log_softmax(-1)).sum()
                for i in range(said.shape[2])
                if hidden[v, n, i]
            ]
            images.append(torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64))
    return torch.stack(images).mean()


def logits_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_patch_loss_equals_a_loop_and_lightlys() -> None:
    targets, logits = logits_of(1, 3, 4, K).softmax(-1), logits_of(1, 3, 4, K, seed=1).requires_grad_()
    hidden = torch.tensor([[[True, True, False, False], [False] * 4, [True, True, True, False]]])
    ours = patch_loss(targets, logits, hidden, 0.2)
    slow = slow_patch_loss([targets[0]], logits, hidden, 0.2)
    assert ours.item() == pytest.approx(slow.item(), rel=1e-10)
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, slow))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)
    assert not first[~hidden].any()

    theirs = IBOTPatchLoss(K, teacher_temp=1.0, student_temp=0.2).double()
    other = theirs(targets.log()[hidden], logits.detach()[hidden], hidden[0].view(3, 2, 2))
    assert ours.item() == pytest.approx(other.item(), rel=1e-6)


def test_patch_loss_has_limits() -> None:
    hidden = torch.tensor([[True, False], [True, True]])
    even = torch.full((2, 2, K), 1.0 / K)
    assert patch_loss(even, torch.zeros(2, 2, K), hidden, 0.1).item() == pytest.approx(math.log(K), rel=1e-6)
    assert patch_loss(even, torch.zeros(2, 2, K), torch.zeros_like(hidden), 0.1).item() == 0.0
    sure = torch.eye(K)[:2].expand(2, -1, -1)
    assert patch_loss(sure, 100.0 * sure, hidden, 0.1).item() == pytest.approx(0.0, abs=1e-6)
    assert patch_loss(sure.bfloat16(), sure.bfloat16(), hidden, 0.01).dtype == torch.float32


def test_tokens_without_a_mask_are_the_vits_own() -> None:
    made = ibot()
    vit, given = made.student.model, batch(made).images
    assert isinstance(vit, VisionTransformer)
    features, patches = view_tokens(made.student, given, None)
    for v in range(2):
        torch.testing.assert_close(features[v], made.student(given[v]))
        torch.testing.assert_close(patches[v], vit.forward_features(given[v])[:, vit.num_prefix_tokens :])


def test_a_mask_hides_its_patches_and_no_others() -> None:
    made = ibot()
    given = batch(made).images
    masks = torch.zeros(2, 5, 16, dtype=torch.bool)
    masks[0, 1, 6] = True  # row 1, column 2 of 4 x 4 patches of 4 px
    mask = torch.linspace(-1.0, 1.0, 16, dtype=torch.float64)
    plain, hidden = (view_tokens(made.student, given, None, m, mask)[1] for m in (torch.zeros_like(masks), masks))
    same = torch.isclose(plain, hidden).all(-1).all(-1)
    assert not same[0, 1] and same.sum() == 9

    def moved(top: int, left: int) -> Tensor:
        other = given.clone()
        other[0, 1, :, top : top + 4, left : left + 4] += 1.0
        return view_tokens(made.student, other, None, masks, mask)[1]

    assert torch.equal(moved(4, 8), hidden)
    assert not torch.allclose(moved(4, 4), hidden)


def test_take_finds_the_hidden_patches() -> None:
    patches = logits_of(2, 3, 6, 4)
    hidden = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    index, real = true_indices(hidden, 6)
    found = take(patches, index)
    for v in range(2):
        for n in range(3):
            expected = [patches[v, n, i] for i in range(6) if hidden[v, n, i]]
            assert real[v, n].sum() == len(expected)
            if expected:
                assert torch.equal(found[v, n][real[v, n]], torch.stack(expected))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("with_local", [True, False])
def test_the_step_is_the_papers_view_by_view(shared: bool, with_local: bool) -> None:
    made = ibot(
        shared_head=shared, temperature=0.2, teacher_temperature=0.05, teacher_patch_temperature=0.07,
        warmup_teacher_temperature=0.05, patch_weight=0.8, teacher_temperature_warmup=0.0,
    )  # fmt: skip
    made.center.copy_(torch.linspace(-0.2, 0.2, K))
    made.patch_center.copy_(torch.linspace(0.1, -0.1, K))
    made.mask.data.copy_(torch.linspace(-1, 1, 16))
    head, teacher = made.head, made.teacher_head
    patch_head, teacher_patch = made.patch_head or head, made.teacher_patch_head or teacher
    assert (head is patch_head) == (teacher is teacher_patch) == shared
    teachers, learners = [made.backbone, teacher], [made.student, head]
    if not shared:
        teachers, learners = [*teachers, teacher_patch], [*learners, patch_head]
    disturb(*teachers)
    given = batch(made)
    vit, seer = made.student.model, made.backbone.model
    assert isinstance(vit, VisionTransformer) and isinstance(seer, VisionTransformer)
    masks = made.masks(given)
    assert masks.any() and not masks.any(-1).all()

    with torch.no_grad():
        known = [transform(seer, seer._pos_embed(seer.patch_embed(images))) for images in given.images]
        of_class = torch.stack([teacher(seer.forward_head(tokens, pre_logits=True)) for tokens in known])
        of_patches = torch.stack([teacher_patch(tokens[:, 1:]) for tokens in known])
    targets = ((of_class - made.center) / 0.05).softmax(-1)
    patch_targets = [((logits - made.patch_center) / 0.07).softmax(-1) for logits in of_patches]
    seen = [masked_by_hand(images, made.mask, masks[v], vit) for v, images in enumerate(given.images)]
    crops = [vit.forward_head(tokens, pre_logits=True) for tokens in seen]
    if with_local and given.local is not None:
        crops += [made.student(images) for images in given.local]
    said = torch.stack([head(features) for features in crops])
    said_of_patches = torch.stack([patch_head(tokens[:, 1:]) for tokens in seen])
    class_loss = slow_crops_loss(targets, said, 0.2)
    patches_loss = slow_patch_loss(patch_targets, said_of_patches, masks, 0.2)
    slow = class_loss + 0.8 * patches_loss
    weights = [made.mask, *(parameter for module in learners for parameter in module.parameters())]
    expected = torch.autograd.grad(slow, weights)
    centers = made.center.clone(), made.patch_center.clone()

    step = made(given if with_local else given._replace(local=None), 0.5)
    assert step.loss.item() == pytest.approx(slow.item(), rel=1e-9)
    assert step.metrics["class_loss"].item() == pytest.approx(class_loss.item(), rel=1e-9)
    assert step.metrics["patch_loss"].item() == pytest.approx(patches_loss.item(), rel=1e-9)
    assert step.metrics["masked"].item() == pytest.approx(masks.double().mean().item(), rel=1e-6)
    assert not any(metric.requires_grad for metric in step.metrics.values())
    step.loss.backward()
    for weight, gradient in zip(weights, expected, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-6, atol=1e-8)  # timm resamples positions in float32
    # The centres: of class tokens, and of all patches, hidden or not.
    Method.after_step(made, 0.0)
    torch.testing.assert_close(made.center, 0.9 * centers[0] + 0.1 * of_class.mean((0, 1)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        made.patch_center, 0.9 * centers[1] + 0.1 * of_patches.mean((0, 1, 2)), rtol=1e-10, atol=1e-12
    )
    assert all(parameter.grad is None for module in teachers for parameter in module.parameters())


def test_an_image_depends_on_its_own_position_alone() -> None:
    made = ibot()
    given = batch(made)
    first = made.masks(given)
    turned = made.masks(given._replace(draws=Draws(1, torch.tensor([4, 3, 2, 1, 0]))))
    assert torch.equal(turned, first.flip(1))


def test_temperatures_rise_and_prototypes_thaw() -> None:
    made = ibot(
        warmup_teacher_temperature=0.04, teacher_temperature=0.08, teacher_patch_temperature=0.06,
        teacher_temperature_warmup=0.4, freeze_last_layer=0.2,
    )  # fmt: skip
    given = batch(made)
    index, hidden = true_indices(made.masks(given), 8)
    features, patches = view_tokens(made.backbone, given.images, None)
    known, of_patches = made.teacher_head(features).detach(), made.teacher_head(take(patches, index)).detach()
    for progress, class_t, patch_t in ((0.0, 0.04, 0.04), (0.2, 0.06, 0.05), (0.4, 0.08, 0.06), (0.9, 0.08, 0.06)):
        made.center.zero_()
        made.patch_center.zero_()
        targets, patch_targets = made.targets(given.images, index, hidden, progress)
        torch.testing.assert_close(targets, (known / class_t).softmax(-1))
        torch.testing.assert_close(patch_targets, (of_patches / patch_t).softmax(-1))
    for progress, frozen in ((0.0, True), (0.19, True), (0.2, False)):
        assert [p is made.head.weight for p in made.frozen(progress)] == [True] * frozen
    apart = ibot(freeze_last_layer=0.2, shared_head=False)
    assert apart.patch_head is not None
    assert {id(p) for p in apart.frozen(0.1)} == {id(apart.head.weight), id(apart.patch_head.weight)}


def test_what_is_exported_is_the_teacher_and_it_follows() -> None:
    student = backbone("vit")
    made = IBOT(student, prototypes=K, hidden=8, bottleneck=4, momentum=0.9, shared_head=False)
    assert made.student is student and made.backbone is not student
    assert made.views == 2 and made.takes_local and made.couples_samples
    assert made.teacher_patch_head is not None and made.patch_head is not None
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
    made = ibot(shared_head=False)
    made(batch(made), 0.5).loss.backward()
    assert [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None] == []
    assert made.mask.grad is not None and made.mask.grad.any()


def test_training_lowers_both_losses() -> None:
    made = method("ibot", "vit", teacher_temperature_warmup=0.0, mask_probability=1.0).train()
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
    assert losses[-1][0] < 0.9 * losses[0][0] and losses[-1][1] < 0.9 * losses[0][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature"),
        ({"teacher_temperature": -1.0}, "method.teacher_temperature"),
        ({"teacher_patch_temperature": 0.0}, "method.teacher_patch_temperature"),
        ({"warmup_teacher_temperature": 0.0}, "method.warmup_teacher_temperature"),
        ({"patch_weight": 0.0}, "method.patch_weight"),
        ({"mask_ratio": (0.5, 0.1)}, "method.mask_ratio"),
        ({"mask_ratio": (0.0, 0.1)}, "method.mask_ratio"),
        ({"mask_ratio": (0.5, 1.0)}, "method.mask_ratio"),
        ({"mask_probability": 1.5}, "method.mask_probability"),
        ({"momentum": 1.1}, "method.momentum"),
        ({"center_momentum": -0.1}, "method.center_momentum"),
        ({"freeze_last_layer": 2.0}, "method.freeze_last_layer"),
        ({"teacher_temperature_warmup": -1.0}, "method.teacher_temperature_warmup"),
        ({"prototypes": 1}, "method.prototypes"),
    ],
)
def test_values_that_make_no_method_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        IBOT(backbone("vit"), **{"prototypes": K, "hidden": 8, "bottleneck": 4, **options})


def test_backbones_without_plain_patches_are_refused() -> None:
    with pytest.raises(UserError, match="method: ibot needs a ViT"):
        IBOT(backbone("conv"))
