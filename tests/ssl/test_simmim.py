"""SimMIM's loss against a loop over pixels, and what the encoder sees of a hidden unit: nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Views
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.train.optim import Optim, parameter_groups
from rootstock.ssl.parts.masks import enlarge
from rootstock.ssl.simmim import SimMIM, local_statistics, simmim_loss

SWIN: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
BACKBONES: dict[str, dict[str, Any]] = {
    "vit": {
        "size": 32,
        "name": "vit_tiny_patch16_224",
        "args": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    },
    "swin": {"size": 64, "name": "swin_tiny_patch4_window7_224", "args": {**SWIN, "window_size": 4}},
    "swinv2": {"size": 64, "name": "swinv2_tiny_window8_256", "args": {**SWIN, "window_size": 4}},
}
KINDS = tuple(BACKBONES)


def backbone(kind: str = "vit", channels: int = 3, **args: Any) -> Backbone:
    spec = BACKBONES[kind]
    return create(spec["size"], channels, name=spec["name"], args={**spec["args"], **args})


def simmim(made: Backbone | None = None, **options: Any) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(made or backbone(), **{"mask_patch": 16, **options}).eval()


def images(method: SimMIM, n: int = 3, seed: int = 0, channels: int = 3) -> Tensor:
    size = method.backbone.size
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def draws(n: int = 3) -> Draws:
    return Draws(0, torch.arange(n))


def slow_loss(prediction: Tensor, pictures: Tensor, hidden: Tensor) -> float:
    """The mean over images of the sum over hidden pixels and channels / (pixels + 1e-5) / channels."""
    n, channels, height, width = pictures.shape
    each = []
    for i in range(n):
        total, count = 0.0, 0
        for y in range(height):
            for x in range(width):
                if hidden[i, y, x]:
                    count += 1
                    for c in range(channels):
                        total += abs(prediction[i, c, y, x].item() - pictures[i, c, y, x].item())
        each.append(total / (count + 1e-5) / channels)
    return sum(each) / n


def test_the_loss_and_its_gradient_equal_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    pictures, prediction = torch.randn(2, 2, 5, 4, 6, generator=generator, dtype=torch.float64)
    hidden = torch.rand(2, 4, 6, generator=generator) < 0.5
    prediction.requires_grad = True
    loss = simmim_loss(prediction, pictures, hidden)
    assert loss.item() == pytest.approx(slow_loss(prediction, pictures, hidden), rel=1e-12)
    loss.backward()
    assert prediction.grad is not None
    for at in ((0, 0, 1, 2), (0, 4, 3, 5), (1, 2, 0, 0), (1, 3, 2, 4)):
        moved = prediction.detach().clone()
        moved[at] += 1e-6
        slope = (slow_loss(moved, pictures, hidden) - loss.item()) / 1e-6
        assert prediction.grad[at].item() == pytest.approx(slope, abs=1e-8)
    assert not prediction.grad[~hidden[:, None].expand_as(prediction)].any()


def test_the_loss_is_the_authors_where_all_images_hide_equally_many_pixels() -> None:
    method = simmim()
    pictures = images(method)
    out = method.reconstruct(pictures, draws())
    mask = out.hidden[:, None].float()
    theirs = (F.l1_loss(pictures, out.prediction, reduction="none") * mask).sum() / (mask.sum() + 1e-5) / 3
    assert simmim_loss(out.prediction, pictures, out.hidden).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_loss_of_bfloat16_is_computed_in_float32() -> None:
    hidden = torch.ones(1, 64, 64, dtype=torch.bool)
    pictures = torch.full((1, 3, 64, 64), 1.001)
    with torch.autocast("cpu", torch.bfloat16):
        loss = simmim_loss(torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16), pictures, hidden)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1.001, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_the_loss_of_its_reconstruction(kind: str) -> None:
    method = simmim(backbone(kind))
    pictures = images(method)
    out = method.reconstruct(pictures, draws())
    assert out.prediction.shape == pictures.shape and out.hidden.shape == (3, *pictures.shape[2:])
    step = method(Views(pictures[None], draws()), 0.0)
    expected = (out.prediction - pictures).abs().mean(1)[out.hidden].mean()
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.loss.requires_grad and not any(metric.requires_grad for metric in step.metrics.values())


def test_statistics_are_those_of_the_window_within_the_picture() -> None:
    pictures = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    mean, deviation = local_statistics(pictures, 5)
    for y in range(7):
        for x in range(6):
            window = pictures[:, :, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].flatten(2)
            torch.testing.assert_close(mean[:, :, y, x], window.mean(-1))
            torch.testing.assert_close(deviation[:, :, y, x], (window.var(-1) + 1e-6).sqrt())
    flat = local_statistics(torch.full((1, 3, 8, 8), 0.7), 3)[1]
    assert flat.isfinite().all() and (flat < 2e-3).all()


def test_targets_are_standardised_and_painting_undoes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    method = simmim(norm_target=9)
    pictures = images(method)
    mean, deviation = local_statistics(pictures, 9)
    out, standardised = method.reconstruct(pictures, draws()), (pictures - mean) / deviation
    loss = method(Views(pictures[None], draws()), 0.0).loss
    assert loss.item() == pytest.approx(slow_loss(out.prediction, standardised, out.hidden), rel=1e-5)
    monkeypatch.setattr(SimMIM, "reconstruct", lambda *_: out._replace(prediction=standardised))
    torch.testing.assert_close(method.paint(pictures, draws())[1], pictures)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_hidden_unit_reaches_the_prediction(kind: str) -> None:
    method = simmim(backbone(kind))
    pictures = images(method)
    out = method.reconstruct(pictures, draws())
    hidden = out.hidden[:, None]
    other = torch.where(hidden, pictures + 7.0, pictures)
    assert torch.equal(method.reconstruct(other, draws()).prediction, out.prediction)
    changed = torch.where(hidden, pictures, pictures + 7.0)
    assert not torch.allclose(method.reconstruct(changed, draws()).prediction, out.prediction)


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_hidden_the_encoder_is_the_backbone_itself(kind: str) -> None:
    method = simmim(backbone(kind))
    pictures, model = images(method), method.backbone.model
    cells = method.backbone.size // method.patch
    found = method.encode(pictures, torch.zeros(3, cells, cells, dtype=torch.bool))
    features: Any = model.forward_features(pictures)  # pyright: ignore[reportCallIssue]
    if isinstance(model, VisionTransformer):
        features = features[:, model.num_prefix_tokens :].unflatten(1, (cells, cells))
    torch.testing.assert_close(found, features.permute(0, 3, 1, 2))


def test_the_mask_token_stands_where_the_patch_would() -> None:
    """It replaces patches, not prefix tokens, before positions are added: as the ViT's forward on an embedding replaced by hand."""
    method = simmim()
    pictures, model = images(method, 1), method.backbone.model
    assert isinstance(model, VisionTransformer)
    hidden = torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[0, 1, 2] = True
    embedded = model.patch_embed(pictures)
    embedded[0, 1 * 4 + 2] = method.mask_token
    expected = model.norm(model.blocks(model._pos_embed(embedded)))[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    torch.testing.assert_close(method.encode(pictures, hidden), expected)


@pytest.mark.parametrize(("kind", "stride"), [("vit", 8), ("swin", 32), ("swinv2", 32)])
@pytest.mark.parametrize("channels", [1, 5])
def test_the_head_is_one_layer_that_paints_a_square_of_each_place(kind: str, stride: int, channels: int) -> None:
    method = simmim(backbone(kind, channels))
    convolution, shuffle = method.head
    assert isinstance(convolution, nn.Conv2d) and isinstance(shuffle, nn.PixelShuffle)
    assert convolution.kernel_size == (1, 1) and convolution.out_channels == stride**2 * channels
    features = method.encode(
        images(method, channels=channels),
        torch.zeros(3, *[method.backbone.size // method.patch] * 2, dtype=torch.bool),
    )
    painted = method.head(features)
    assert painted.shape == (3, channels, method.backbone.size, method.backbone.size)
    values = F.linear(features[1, :, 0, 1], convolution.weight[:, :, 0, 0], convolution.bias)
    square = painted[1, :, :stride, stride : 2 * stride]
    for c in range(channels):
        for y, x in ((0, 0), (1, 3), (stride - 1, stride - 2)):
            index = (c * stride + y) * stride + x
            assert square[c, y, x].item() == pytest.approx(values[index].item(), abs=1e-5)


def test_units_are_whole_and_counted_upwards() -> None:
    for ratio, count in ((0.6, 3), (0.5, 2), (0.51, 3), (0.01, 1)):
        method = simmim(mask_ratio=ratio)
        hidden = method.reconstruct(images(method), draws()).hidden
        units = hidden[:, ::16, ::16]
        assert torch.equal(enlarge(units, 16), hidden) and units.sum((1, 2)).tolist() == [count] * 3
    published = SimMIM(create(192, name="swin_tiny_patch4_window7_224", args={**SWIN, "window_size": 6}))
    assert (published.units, published.count) == ((6, 6), 22)


def test_masks_belong_to_positions() -> None:
    method = simmim(mask_patch=8)
    pictures = images(method, 4)
    first = method.reconstruct(pictures, Draws(0, torch.tensor([10, 11, 12, 13]))).hidden
    assert torch.equal(method.reconstruct(pictures, Draws(0, torch.tensor([13, 12, 11, 10]))).hidden, first.flip(0))
    assert len({tuple(mask.flatten().tolist()) for mask in first}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_the_batch(kind: str) -> None:
    method = simmim(backbone(kind)).double()
    pictures, whole = images(method, 4).double(), draws(4)

    def gradient(rows: slice) -> list[Tensor]:
        some = Draws(0, whole.positions[rows])
        loss = method(Views(pictures[None, rows], some), 0.0).loss
        return list(torch.autograd.grad(loss, list(method.parameters())))

    parts = zip(gradient(slice(0, 2)), gradient(slice(2, 4)), strict=True)
    for right, (first, second) in zip(gradient(slice(0, 4)), parts, strict=True):
        torch.testing.assert_close((first + second) / 2, right, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_and_the_mask_token_is_not_decayed(kind: str) -> None:
    method = simmim(backbone(kind)).train()
    method(Views(images(method)[None], draws()), 0.0).loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []
    optim = Optim(lr=1e-3, batch_size=4, duration=1, weight_decay=0.05)  # pyright: ignore[reportArgumentType]
    decays = {id(p): group["weight_decay"] for group in parameter_groups(method, optim) for p in group["params"]}
    assert decays[id(method.mask_token)] == 0.0


def test_paint_shows_the_hidden_units_gray_and_then_painted() -> None:
    method = simmim()
    pictures = images(method)
    out = method.reconstruct(pictures, draws())
    seen, painted = method.paint(pictures, draws())
    hidden = out.hidden[:, None].expand_as(pictures)
    assert not seen[hidden].any() and torch.equal(seen[~hidden], pictures[~hidden])
    assert torch.equal(painted[hidden], out.prediction[hidden]) and torch.equal(painted[~hidden], pictures[~hidden])


def test_training_lowers_the_loss() -> None:
    method = simmim(mask_patch=8).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    ramp = torch.linspace(-1, 1, 32).expand(8, 3, 32, 32) * torch.linspace(0.5, 2, 8)[:, None, None, None]
    losses = []
    for step in range(40):
        loss = method(Views(ramp[None], Draws(0, torch.arange(8) + 8 * step)), 0.0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.0}, r"method\.mask_ratio: must lie between 0 and 1"),
        ({"mask_ratio": 1.0}, r"method\.mask_ratio: must lie between 0 and 1"),
        (
            {"mask_ratio": 0.8},
            r"method\.mask_ratio: 0\.8 of 4 units of 16 px hides all; lower it or method\.mask_patch",
        ),
        ({"mask_patch": 32}, r"method\.mask_ratio: 0\.6 of 1 units of 32 px hides all"),
        ({"mask_patch": 12}, r"method\.mask_patch: 12 px must be a multiple of .*\(8 px\) .*\(32 px\); 8 would do"),
        ({"mask_patch": 24}, r"method\.mask_patch: 24 px must .* divide data\.size \(32 px\); 16 would do"),
        ({"norm_target": 8}, r"method\.norm_target: expected an odd number of pixels, 3 or more, got 8"),
        ({"norm_target": 1}, r"method\.norm_target"),
        ({"mask_patch": 0}, r"method\.mask_patch: 0 px must be"),
    ],
)
def test_values_that_do_not_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        simmim(**options)


def test_other_backbones_and_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"method: simmim needs a ViT or a Swin, resnet10t is a ResNet; try swin_tiny"):
        SimMIM(create(32, name="resnet10t"))
    with pytest.raises(UserError, match=r"backbone.pooling: .*simmim would not train; set pooling to mean or token"):
        SimMIM(backbone(global_pool="map", class_token=False))
    with pytest.raises(UserError, match=r"data.size: 48 px are not a multiple of 32 px, the stride of swin_tiny"):
        SimMIM(create(48, name="swin_tiny_patch4_window7_224", args=BACKBONES["swin"]["args"]), mask_patch=8)
