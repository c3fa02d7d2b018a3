"""Each map against captum's in float64, or, where captum has none, against a slow version that takes attention apart by hand."""

from typing import Any, cast

import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.model.classifier import Classifier
from rootstock.finetune.explain.attention import attention_of, attention_rollout, gradient_attention
from rootstock.finetune.explain.cam import grad_cam
from rootstock.finetune.explain.gradients import (
    allowed_error,
    integrated_gradients,
    noise_of,
    saliency,
    smooth_gradient,
)
from rootstock.finetune.explain.methods import METHODS, MapSettings, PicturesSeen, check_methods, is_constant
from rootstock.finetune.explain.places import chosen_place, inner_places

Classifiers = dict[str, Classifier]
BLACK = torch.full((3, 1, 1), -1.0, dtype=torch.float64)


def near(found: Tensor, expected: Tensor) -> None:
    expected = expected.detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert float(expected.abs().max()) > 1e-4


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_gradients_are_captums(family: str, classifiers: Classifiers, pictures: Tensor, target: Tensor) -> None:
    model = classifiers[family]
    near(
        saliency(model, pictures, target),
        cast("Any", Saliency(model)).attribute(pictures.clone().requires_grad_(), target=target),
    )
    found = integrated_gradients(model, pictures, target, BLACK, first=8, most=8)
    expected = IntegratedGradients(model).attribute(
        pictures, BLACK.expand_as(pictures), target=target, n_steps=8, method="gausslegendre"
    )
    near(found.attributions, cast("Tensor", expected))


def test_smoothgrad_is_captums_of_the_same_noise(
    classifiers: Classifiers, pictures: Tensor, target: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """captum's noise is made ours: it draws from torch.normal, once for each copy of each picture in turn."""
    model, keys = classifiers["resnet"], torch.tensor([5, -7, 9, 1 << 40])
    noise = torch.stack([noise_of(pictures, keys, 3, number, 0.2) for number in range(4)], 1).flatten(0, 1)
    monkeypatch.setattr(torch, "normal", lambda mean, std: noise)
    tunnel = cast("Any", NoiseTunnel(Saliency(model)))
    expected = tunnel.attribute(
        pictures.clone().requires_grad_(), nt_type="smoothgrad", nt_samples=4, stdevs=1.0, target=target, abs=False
    )
    near(smooth_gradient(model, pictures, target, keys, 3, draws=4, noise=0.2), expected)
    # A picture's noise is its own, whatever stands beside it, and of the size that was asked for.
    assert torch.equal(noise_of(pictures[2:], keys[2:], 3, 1, 0.2), noise_of(pictures, keys, 3, 1, 0.2)[2:])
    assert not torch.equal(noise_of(pictures, keys, 4, 1, 0.2), noise_of(pictures, keys, 3, 1, 0.2))
    spread = pictures.flatten(1).amax(1) - pictures.flatten(1).amin(1)
    assert torch.allclose(noise.view(4, -1).std(1), 0.2 * spread, rtol=0.05)


@pytest.mark.parametrize(
    ("family", "layer", "module"),
    [
        ("resnet", None, "layer4"), ("resnet", "stage2", "layer2"), ("resnet", "stage0", "act1"),
        ("convnext", "stage1", "stages.1"), ("smallconv", "stage1", "blocks.1"),
    ],
)  # fmt: skip
def test_grad_cam_is_captums(
    family: str, layer: str | None, module: str, classifiers: Classifiers, pictures: Tensor, target: Tensor
) -> None:
    model = classifiers[family]
    place = chosen_place(model, layer)
    found = grad_cam(model, pictures, target, place)
    at = model.backbone.model.get_submodule(module)
    expected = LayerGradCam(model, at).attribute(pictures, target=target, relu_attributions=True)
    near(found, cast("Tensor", expected)[:, 0])
    assert found.shape[1:] == place.grid


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_grad_cam_of_tokens_is_captums_of_their_map(
    family: str, classifiers: Classifiers, pictures: Tensor, target: Tensor
) -> None:
    """captum takes maps [N, D, h, w]: a layer of no weights in the middle turns tokens into one and back."""

    class Turned(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block, self.map = block, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = self.block(x)
            if x.ndim == 4:
                return self.map(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            patches = self.map(x[:, 1:].transpose(1, 2).reshape(len(x), -1, 4, 4))
            return torch.cat([x[:, :1], patches.flatten(2).transpose(1, 2)], 1)

    model = classifiers[family]
    stages, name = (
        (model.backbone.model.blocks, "block1") if family == "vit" else (model.backbone.model.layers, "stage0")
    )
    number, blocks = int(name[-1]), cast("Any", stages)
    found = grad_cam(model, pictures, target, chosen_place(model, None if family == "vit" else name))
    before, turned = blocks[number], Turned(blocks[number])
    blocks[number] = turned
    try:
        expected = LayerGradCam(model, turned.map).attribute(pictures, target=target, relu_attributions=True)
    finally:
        blocks[number] = before
    near(found, cast("Tensor", expected)[:, 0])


def test_integrated_gradients_complete_or_say_so(classifiers: Classifiers, pictures: Tensor, target: Tensor) -> None:
    """Points are doubled for those pictures alone that need it, until attributions sum to the difference of the logits."""
    model = classifiers["vit"]
    pictures, target = pictures[:3], target[:3]
    found = integrated_gradients(model, pictures, target, BLACK, first=8, most=64, tolerance=5e-3)
    assert bool(found.complete.all()) and len(found.steps.unique()) > 1 and int(found.steps.max()) <= 64
    logits = [model(x).gather(1, target[:, None])[:, 0] for x in (pictures, BLACK.expand_as(pictures))]
    difference = logits[0] - logits[1]
    torch.testing.assert_close(found.difference, difference)
    assert bool(((found.attributions.sum((1, 2, 3)) - difference).abs() <= 5e-3 * difference.abs().clamp(min=1)).all())
    few = integrated_gradients(model, pictures, target, BLACK, first=1, most=1, tolerance=5e-3)
    assert not bool(few.complete.any()) and bool((few.error > allowed_error(few.difference, 5e-3)).all())


def by_hand(model: Classifier, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
    """timm's ViT token by token: the attention of each block from its queries and keys, and the logits that follow."""
    vit: Any = model.backbone.model
    x = vit._pos_embed(vit.patch_embed(pictures))
    kept = list[Tensor]()
    for block in vit.blocks:
        y, heads = block.norm1(x), block.attn.num_heads
        q, k, v = block.attn.qkv(y).chunk(3, dim=-1)
        width, parts, own = q.shape[-1] // heads, list[Tensor](), list[Tensor]()
        for h in range(heads):
            one = slice(h * width, (h + 1) * width)
            own.append(((q[..., one] @ k[..., one].mT) / width**0.5).softmax(-1))
        kept.append(torch.stack(own, 1))
        attention = kept[-1]
        for h in range(heads):
            parts.append(attention[:, h] @ v[..., h * width : (h + 1) * width])
        x = x + block.attn.proj(torch.cat(parts, -1))
        x = x + block.mlp(block.norm2(x))
    x = vit.norm(x)
    return kept, model.head(vit.fc_norm(x[:, 0] if vit.global_pool == "token" else x[:, 1:].mean(1)))


@pytest.mark.parametrize("family", ["vit", "vit-mean"])
def test_attention_maps_are_those_by_hand(
    family: str, classifiers: Classifiers, pictures: Tensor, target: Tensor
) -> None:
    model = classifiers[family]
    own = attention_of(model)
    fused = [layer.fused_attn for layer in own.layers]
    matrices, logits = by_hand(model, pictures.clone().requires_grad_())
    torch.testing.assert_close(logits, model(pictures))
    slopes = torch.autograd.grad(torch.stack([logits[i, c] for i, c in enumerate(target.tolist())]).sum(), matrices)
    found = attention_rollout(model, pictures, own), gradient_attention(model, pictures, target, own)
    for i in range(len(pictures)):
        rolled = relevant = torch.eye(17, dtype=torch.float64)
        for matrix, slope in zip(matrices, slopes, strict=True):
            mean = torch.stack(list(matrix[i])).mean(0).detach() + torch.eye(17)
            rolled = (mean / mean.sum(-1, keepdim=True)) @ rolled
            positive = [(a * g).relu() for a, g in zip(matrix[i].detach(), slope[i], strict=True)]
            relevant = relevant + torch.stack(positive).mean(0) @ relevant
        read = (lambda whole: whole[0, 1:]) if family == "vit" else (lambda whole: whole[1:, 1:].mean(0))
        near(found[0][i].flatten(), read(rolled))
        near(found[1][i].flatten(), read(relevant))
    assert [layer.fused_attn for layer in own.layers] == fused


def test_methods_that_a_network_lacks_are_refused_or_left_out(classifiers: Classifiers) -> None:
    every = {name: check_methods((), model, MapSettings()) for name, model in classifiers.items()}
    names = {name: [one.name for one in made] for name, (made, _) in every.items()}
    assert names["vit"] == names["vit-mean"] == list(METHODS)
    for family in ("resnet", "convnext", "swin", "smallconv"):
        assert names[family] == list(METHODS)[:4] and len(every[family][1]) == 2
    with pytest.raises(UserError, match=r"swin_.* has no attention of all its tokens .*--method grad-cam"):
        check_methods(("attention-rollout",), classifiers["swin"], MapSettings())
    with pytest.raises(
        UserError, match=r"--layer: resnet10t has no layer called 'stage9'; choose from stage0, .*final"
    ):
        check_methods(("grad-cam",), classifiers["resnet"], MapSettings(layer="stage9"))
    with pytest.raises(UserError, match="--method: 'lime' is unknown; choose from grad-cam, "):
        check_methods(("lime",), classifiers["resnet"], MapSettings())
    assert list(inner_places(classifiers["vit"])) == ["block0", "block1", "block2"]
    assert list(inner_places(classifiers["swin"])) == ["stage0", "stage1", "final"]
    # At 32 px the last map of a ConvNeXt has one place, which would show nothing.
    assert inner_places(classifiers["convnext"])["final"].grid == (1, 1)
    assert chosen_place(classifiers["convnext"], None).name == "stage2"


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_a_picture_has_the_map_that_it_has_alone(
    family: str, classifiers: Classifiers, pictures: Tensor, target: Tensor
) -> None:
    made, _ = check_methods((), classifiers[family], MapSettings(draws=2, first_steps=2, most_steps=2))
    keys = torch.arange(4) * 11
    shown = PicturesSeen(pictures, target, keys, keys, BLACK)
    for explainer in made:
        whole, alone = explainer(shown), explainer(shown.rows(slice(2, 3)))
        assert whole.dtype == torch.float32 and not bool(is_constant(whole).any())
        torch.testing.assert_close(whole[2:3], alone, rtol=1e-5, atol=1e-8)
        assert explainer.signed == bool((whole < 0).any())
