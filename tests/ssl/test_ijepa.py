"""I-JEPA's loss against a loop over patches, padding that changes nothing, and lightly's implementation of the predictor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Views
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.sincos import sincos
from rootstock.ssl.ijepa import IJEPA, Predictor, ijepa_loss
from rootstock.ssl.parts.masks import true_indices

SIZE, PATCH, SIDE = 32, 4, 8


def vit(**args: Any) -> Backbone:
    arguments = {"patch_size": PATCH, "embed_dim": 16, "depth": 2, "num_heads": 2, **args}
    return create(SIZE, name="vit_tiny_patch16_224", args=arguments)


def ijepa(backbone: Backbone | None = None, **options: Any) -> IJEPA:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"predictor_dim": 8, "predictor_depth": 1, "predictor_heads": 2, **options}
    return IJEPA(backbone or vit(), **sizes).eval()


def images(n: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def draws(n: int = 3) -> Draws:
    return Draws(0, torch.arange(n))


def model_of(backbone: Backbone) -> VisionTransformer:
    assert isinstance(backbone.model, VisionTransformer)
    return backbone.model


def slow_loss(prediction: Tensor, targets: Tensor, real: Tensor) -> float:
    """Smooth L1 with a knee at 1, averaged over numbers, real patches, blocks and images in turn."""
    images = []
    for n in range(len(real)):
        blocks = []
        for k in range(real.shape[1]):
            patches = []
            for t in range(real.shape[2]):
                if not real[n, k, t]:
                    continue
                errors = [
                    abs(p - q) for p, q in zip(prediction[n, k, t].tolist(), targets[n, k, t].tolist(), strict=True)
                ]
                patches.append(sum(0.5 * e * e if e < 1 else e - 0.5 for e in errors) / len(errors))
            blocks.append(sum(patches) / len(patches))
        images.append(sum(blocks) / len(blocks))
    return sum(images) / len(images)


def test_the_loss_and_its_gradient_equal_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    prediction, targets = 1.5 * torch.randn(2, 3, 2, 4, 5, generator=generator, dtype=torch.float64)
    real = torch.tensor(
        [[[True] * 4, [True, True, False, False]], [[True] * 3 + [False]] * 2, [[True] + [False] * 3] * 2]
    )
    prediction.requires_grad = True
    loss = ijepa_loss(prediction, targets, real)
    assert loss.item() == pytest.approx(slow_loss(prediction, targets, real), rel=1e-12)
    loss.backward()
    assert prediction.grad is not None and not prediction.grad[~real].any()
    for at in ((0, 0, 3, 1), (0, 1, 1, 4), (1, 1, 2, 0), (2, 0, 0, 3)):
        moved = prediction.detach().clone()
        moved[at] += 1e-6
        slope = (slow_loss(moved, targets, real) - loss.item()) / 1e-6
        assert prediction.grad[at].item() == pytest.approx(slope, abs=1e-6)


def test_the_loss_is_torchs_where_nothing_is_padded() -> None:
    prediction, targets = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(2))
    real = torch.ones(3, 4, 5, dtype=torch.bool)
    torch.testing.assert_close(ijepa_loss(prediction, targets, real), F.smooth_l1_loss(prediction, targets))


def test_the_loss_of_bfloat16_is_computed_in_float32() -> None:
    real = torch.ones(1, 1, 4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ijepa_loss(torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16), torch.full((1, 1, 4, 8), 1.001), real)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0.501, rel=1e-5)


def slow_forward(method: IJEPA, pictures: Tensor, some: Draws) -> float:
    """One image at a time, one block at a time, without padding: the paper's method by timm's own forward."""
    context, targets = method.masks(some)
    student, teacher = model_of(method.student), model_of(method.backbone)
    predictor, prefix = method.predictor, student.num_prefix_tokens
    losses = []
    for n in range(len(pictures)):
        picture = pictures[n : n + 1]
        answers = F.layer_norm(teacher.forward_features(picture)[:, prefix:], (16,))
        tokens = student._pos_embed(student.patch_embed(picture))
        keep = context[n].nonzero().flatten()
        tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix:][:, keep]], 1)
        x = predictor.embed(student.norm(student.blocks(tokens)))
        x = torch.cat([x[:, :prefix], x[:, prefix:] + predictor.positions[keep]], 1)
        for k in range(targets.shape[1]):
            wanted = targets[n, k].nonzero().flatten()
            asked = predictor.mask_token[0] + predictor.positions[wanted]
            out = predictor.norm(predictor.blocks(torch.cat([x, asked], 1)))[:, -len(wanted) :]
            losses.append(F.smooth_l1_loss(predictor.project(out), answers[:, wanted]))
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize(
    "args", [{}, {"class_token": False, "global_pool": "avg", "fc_norm": False}, {"reg_tokens": 2}]
)
def test_forward_is_each_image_and_block_for_itself_without_padding(args: dict[str, Any]) -> None:
    method, pictures = ijepa(vit(**args), target_scale=(0.05, 0.3)), images(5)
    for parameter in method.parameters():  # makes the teacher differ from the student, and attention matter
        parameter.data += 0.2 * torch.randn_like(parameter)
    context, targets = method.masks(draws(5))
    assert len(context.sum(1).unique()) > 1 and len(targets.sum(2).unique()) > 1
    step = method(Views(pictures[None], draws(5)), 0.0)
    assert step.loss.item() == pytest.approx(slow_forward(method, pictures, draws(5)), rel=1e-5)
    assert step.metrics["context_patches"].item() == pytest.approx(context.sum().item() / 5)
    assert step.metrics["target_patches"].item() == pytest.approx(targets.sum().item() / 20)
    assert step.loss.requires_grad and not any(metric.requires_grad for metric in step.metrics.values())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_the_cpu_leaves_out_changes_nothing(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other devices lists of patches have a fixed length and padding is masked; loss and gradient are the same."""
    method, pictures = ijepa(target_scale=(0.05, 0.3), predictor_depth=depth).double(), images(5).double()
    for parameter in method.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    leaves = [p for p in [*method.student.parameters(), *method.predictor.parameters()] if p.requires_grad]
    results = []
    for eager in (True, False):
        for module in ("ssl.ijepa", "core.model.vit_tokens"):
            monkeypatch.setattr(f"rootstock.{module}.eager_cpu", lambda _x, eager=eager: eager)
        loss = method(Views(pictures[None], draws(5)), 0.0).loss
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert all(gradient.any() for gradient in results[0][1:])


def test_the_predictor_is_lightlys() -> None:
    torch.manual_seed(0)
    ours = Predictor(16, (4, 4), 0, dim=8, depth=2, heads=2)
    theirs = IJEPAPredictorTIMM(num_patches=16, depth=2, mlp_dim=16, predictor_embed_dim=8, num_heads=2)
    renamed = {
        "embed": "predictor_embed",
        "project": "predictor_proj",
        "blocks": "decoder.blocks",
        "norm": "decoder.norm",
    }
    weights = {
        f"{renamed[name.split('.')[0]]}.{name.partition('.')[2]}": value
        for name, value in ours.state_dict().items()
        if name != "mask_token"
    }
    weights |= {
        name: value.view_as(theirs.state_dict()[name])
        for name, value in (("decoder.mask_token", ours.mask_token.data), ("decoder.pos_embed", ours.positions))
    }
    assert weights.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(weights)
    tokens = torch.randn(3, 5, 16)
    keep = torch.stack([torch.randperm(16)[:5] for _ in range(3)])
    wanted = torch.stack([torch.randperm(16)[:4] for _ in range(6)]).view(3, 2, 4)
    found = ours(tokens, keep, torch.ones(3, 5, dtype=torch.bool), wanted, torch.ones(3, 2, 4, dtype=torch.bool))
    expected = theirs(tokens, keep, [wanted[:, 0], wanted[:, 1]]).view(2, 3, 4, 16).transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_context_never_shows_what_is_to_be_predicted() -> None:
    method, pictures = ijepa(), images()
    context, targets = method.masks(draws())
    assert not (context & targets.any(1)).any()
    keep, seen = true_indices(context, method.most_context)
    wanted, real = true_indices(targets, method.most_target)
    before = method.predict(pictures, keep, seen, wanted, real)
    shown = context.view(3, 1, SIDE, SIDE).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    other = torch.where(shown, pictures, pictures + 7.0)
    assert torch.equal(method.predict(other, keep, seen, wanted, real)[real], before[real])
    changed = torch.where(shown, pictures + 7.0, pictures)
    assert not torch.allclose(method.predict(changed, keep, seen, wanted, real)[real], before[real])


def test_the_context_of_small_grids_keeps_enough_patches() -> None:
    method = ijepa(min_context=30)
    context, targets = method.masks(draws(500))
    counts = context.sum(1)
    assert counts.min() >= 30 and counts.max() <= method.most_context
    shared = (context & targets.any(1)).any(1)
    assert 0.5 < shared.float().mean() < 1  # 49 patches minus four blocks of 9 to 12
    assert not (context & targets[:, 0]).any()  # the last ones stay in, not the first


def test_a_large_context_is_thinned_out_evenly_for_each_image_by_itself() -> None:
    whole, thinned = ijepa(), ijepa(max_context=12)
    context, targets = whole.masks(draws(2000))
    some, same = thinned.masks(draws(2000))
    assert torch.equal(targets, same) and not (some & ~context).any() and thinned.most_context == 12
    assert torch.equal(some.sum(1), context.sum(1).clamp(max=12)) and (context.sum(1) < 12).any()
    large = context.sum(1) > 12
    expected = (context[large] * (12 / context[large].sum(1, keepdim=True))).sum(0)
    assert ((some[large].sum(0) - expected).abs() < 5 * expected.sqrt() + 1e-6).all()
    assert torch.equal(thinned.masks(Draws(0, torch.arange(7, 9)))[0], some[7:9])


@pytest.mark.parametrize("options", [{}, {"min_context": 45}, {"targets": 1, "context_scale": (0.3, 0.9)}])
def test_no_list_of_patches_is_cut_off(options: dict[str, Any]) -> None:
    method = ijepa(**options)
    context, targets = method.masks(draws(5000))
    assert int(context.sum(1).max()) <= method.most_context and int(targets.sum(2).max()) <= method.most_target
    assert int(targets.sum(2).max()) == method.most_target
    published = IJEPA(create(224, name="vit_tiny_patch16_224", args={"depth": 1}))
    assert (published.most_context, published.most_target) == (13 * 13 - 30, 40)


def test_targets_are_the_teachers_tokens_of_the_whole_image_normalised() -> None:
    method, pictures = ijepa(), images()
    tokens, features = method.teach(pictures)
    assert tokens.shape == (3, SIDE**2, 16) and not model_of(method.backbone).training
    torch.testing.assert_close(features, method.backbone(pictures))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(3, SIDE**2), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(3, SIDE**2), rtol=1e-2, atol=0)


def test_the_teacher_follows_along_a_line_and_is_exported() -> None:
    method = ijepa(momentum=0.9)
    names = [name for name, p in method.student.named_parameters() if p.requires_grad]
    assert not any(p.requires_grad for p in method.backbone.parameters())
    for parameter in method.student.parameters():
        parameter.data += torch.randn_like(parameter) * parameter.requires_grad
    for progress, momentum in ((0.0, 0.9), (0.5, 0.95), (1.0, 1.0)):
        before = {name: p.clone() for name, p in method.backbone.named_parameters()}
        method.after_step(progress)
        students, teachers = dict(method.student.named_parameters()), dict(method.backbone.named_parameters())
        for name in names:
            torch.testing.assert_close(teachers[name], momentum * before[name] + (1 - momentum) * students[name])
    fixed = model_of(method.backbone).pos_embed
    assert fixed is not None
    torch.testing.assert_close(fixed[0, 1:], sincos((SIDE, SIDE), 16)[0])


@pytest.mark.parametrize("args", [{}, {"class_token": False, "global_pool": "avg", "fc_norm": False}])
def test_what_is_trained_and_what_is_not(args: dict[str, Any]) -> None:
    method = ijepa(vit(**args)).train()
    method(Views(images()[None], draws()), 0.0).loss.backward()
    trained = {name for name, p in method.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in method.named_parameters() if p.requires_grad}
    fixed = {name for name, _ in method.named_parameters()} - trained
    assert {name for name in fixed if not name.startswith("backbone.")} == {"student.model.pos_embed"}


def test_the_start_is_the_authors_unless_weights_were_given() -> None:
    method = ijepa()
    for made in (method.student, method.backbone):
        model = model_of(made)
        assert model.pos_embed is not None
        torch.testing.assert_close(model.pos_embed[0, 1:], sincos((SIDE, SIDE), 16)[0])
        assert model.patch_embed.proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert not model.patch_embed.proj.bias.any()  # pyright: ignore[reportOptionalMemberAccess]
    for linear in (m for m in method.predictor.modules() if isinstance(m, nn.Linear)):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.3) and not linear.bias.any()
    trained = vit()
    trained.provenance = [{"task": "pretrain"}]
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in ijepa(trained).student.model.state_dict().items())


def test_micro_batches_add_up_to_the_batch() -> None:
    method, pictures, whole = ijepa().double(), images(4).double(), draws(4)
    weights = [p for p in method.parameters() if p.requires_grad]

    def gradient(rows: slice) -> tuple[Tensor, ...]:
        loss = method(Views(pictures[None, rows], Draws(0, whole.positions[rows])), 0.0).loss
        return torch.autograd.grad(loss, weights)

    for right, first, second in zip(*map(gradient, (slice(0, 4), slice(0, 1), slice(1, 4))), strict=True):
        torch.testing.assert_close((first + 3 * second) / 4, right, rtol=1e-9, atol=1e-13)


def test_training_lowers_the_loss() -> None:
    method = ijepa(predictor_dim=16, momentum=0.99).train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    pictures = images(8)
    losses = []
    for step in range(30):
        loss = method(Views(pictures[None], Draws(0, torch.arange(8) + 8 * step)), step / 30).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step / 30)
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": 0}, r"method\.targets: expected 1 to 1,000, got 0"),
        ({"target_scale": (0.2, 0.15)}, r"method\.target_scale: .* up to 1, got \[0\.2, 0\.15\]"),
        ({"target_scale": (0.2, 1.5)}, r"method\.target_scale"),
        ({"target_aspect": (0.0, 1.5)}, r"method\.target_aspect: expected the smallest and the largest, above 0, got"),
        ({"context_scale": (0.0, 1.0)}, r"method\.context_scale"),
        ({"min_context": 50}, r"method\.min_context: expected 1 to 49 patches .* of 8 x 8 patches\), got 50"),
        ({"min_context": 0}, r"method\.min_context"),
        ({"max_context": 9}, r"method\.max_context: expected method\.min_context \(10\) or more, got 9"),
        ({"predictor_dim": 10}, r"method\.predictor_dim: 10 must be a multiple of 4 and of predictor_heads \(2\)"),
        ({"predictor_heads": 0}, r"method\.predictor_dim"),
        ({"predictor_depth": 0}, r"method\.predictor_depth: expected 1 to 1,000, got 0; 6 is published"),
        ({"momentum": 1.5}, r"method\.momentum: expected a number from 0 to 1"),
    ],
)
def test_values_that_do_not_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ijepa(**options)


def test_backbones_without_plain_patches_are_refused() -> None:
    with pytest.raises(UserError, match=r"method: ijepa needs a ViT, resnet10t is a ResNet; try vit_small"):
        IJEPA(create(SIZE, name="resnet10t"))
    with pytest.raises(UserError, match=r"backbone.pooling: .*ijepa would not train"):
        IJEPA(vit(class_token=False, global_pool="map"))
