"""MAE's loss against a loop over patches, and which patches encoder and decoder see."""

import math
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Views
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.sincos import sincos
from rootstock.ssl.mae import MAE, MAEDecoder, mae_loss, patchify, unpatchify

SIZE, PATCH, COUNT, VISIBLE = 16, 4, 16, 4


def vit(**args: Any) -> Backbone:
    arguments = {"patch_size": PATCH, "embed_dim": 16, "depth": 2, "num_heads": 2, **args}
    return create(SIZE, name="vit_tiny_patch16_224", args=arguments)


def mae(backbone: Backbone | None = None, **options: Any) -> MAE:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, **options}
    return MAE(backbone or vit(), **sizes).eval()


def images(n: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def slow_loss(prediction: Tensor, pictures: Tensor, masked: Tensor, patch: int, norm_pix: bool) -> float:
    """The mean over masked patches of the mean squared error over a patch's pixels, one number at a time."""
    errors = []
    across = pictures.shape[3] // patch
    for n in range(len(pictures)):
        for cell in range(prediction.shape[1]):
            if not masked[n, cell]:
                continue
            top, left = cell // across * patch, cell % across * patch
            values = [
                pictures[n, c, top + y, left + x].item()
                for y in range(patch)
                for x in range(patch)
                for c in range(pictures.shape[1])
            ]
            if norm_pix:
                mean = sum(values) / len(values)
                variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
                values = [(v - mean) / math.sqrt(variance + 1e-6) for v in values]
            pixels = prediction[n, cell].tolist()
            errors.append(sum((p - v) ** 2 for p, v in zip(pixels, values, strict=True)) / len(values))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_loss_equals_a_loop_over_patches(norm_pix: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(2, 3, 8, 12, generator=generator, dtype=torch.float64)
    prediction = torch.randn(2, 6, 48, generator=generator, dtype=torch.float64)
    masked = torch.tensor([[True, False, True, True, False, False], [False, True, False, True, True, True]])
    ours = mae_loss(prediction[masked], patchify(pictures, PATCH)[masked], norm_pix)
    assert ours.item() == pytest.approx(slow_loss(prediction, pictures, masked, PATCH, norm_pix), rel=1e-10)


def test_the_loss_of_bfloat16_is_computed_in_float32() -> None:
    loss = mae_loss(torch.zeros(1, COUNT, 48, dtype=torch.bfloat16), patchify(images(1), PATCH), True)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(47 / 48, rel=1e-4)  # the biased variance of standardised pixels


def test_unpatchify_is_the_inverse_and_the_order_is_row_by_row() -> None:
    pictures = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    patches = patchify(pictures, PATCH)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(unpatchify(patches, PATCH, 8, 12), pictures)
    assert torch.equal(patches[1, 4].view(PATCH, PATCH, 3), pictures[1, :, 4:8, 4:8].permute(1, 2, 0))


def test_sincos_equals_a_loop() -> None:
    table = sincos((2, 3), 8)[0]
    assert table.shape == (6, 8)
    for cell in range(6):
        row, column = divmod(cell, 3)
        rates = [10000.0 ** (-k / 2) for k in range(2)]
        expected = [f(p * rate) for f in (math.sin, math.cos) for p in (row, column) for rate in rates]
        torch.testing.assert_close(table[cell], torch.tensor(expected))


def test_masks_belong_to_positions() -> None:
    method, pictures = mae(), images(4)

    def masks(positions: list[int]) -> Tensor:
        return method.reconstruct(pictures, Draws(0, torch.tensor(positions))).masked

    first = masks([10, 11, 12, 13])
    assert first.sum(1).tolist() == [COUNT - VISIBLE] * 4
    assert len({tuple(row.tolist()) for row in first}) == 4
    assert torch.equal(masks([13, 12, 11, 10]), first.flip(0))


def test_every_patch_is_hidden_about_as_often() -> None:
    draws = Draws(0, torch.arange(2000))
    order = draws.permutation("mask", COUNT)
    shown = torch.zeros(2000, COUNT).scatter(1, order[:, :VISIBLE], 1.0).mean(0)
    assert (shown - VISIBLE / COUNT).abs().max() < 0.04


def test_the_encoder_sees_visible_patches_only() -> None:
    method, pictures = mae(), images()
    model = method.backbone.model
    assert isinstance(model, VisionTransformer)
    lengths: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    draws = Draws(0, torch.arange(3))
    keep = draws.permutation("mask", COUNT)[:, :VISIBLE]
    tokens = method.encode(pictures, keep)
    assert lengths == [1 + VISIBLE] and tokens.shape == (3, 1 + VISIBLE, 16)

    masked = method.reconstruct(pictures, draws).masked
    patches = patchify(pictures, PATCH)
    other = unpatchify(torch.where(masked[:, :, None], patches + 7.0, patches), PATCH, SIZE, SIZE)
    assert torch.equal(method.encode(other, keep), tokens)
    changed = unpatchify(torch.where(masked[:, :, None], patches, patches + 7.0), PATCH, SIZE, SIZE)
    assert not torch.allclose(method.encode(changed, keep), tokens)


def test_all_patches_visible_is_the_vit_itself() -> None:
    method, pictures = mae(), images()
    model = method.backbone.model
    assert isinstance(model, VisionTransformer)
    everything = torch.arange(COUNT).expand(3, -1)
    torch.testing.assert_close(method.encode(pictures, everything), model.forward_features(pictures))


def test_the_decoder_puts_tokens_back_in_place() -> None:
    torch.manual_seed(0)
    decoder = MAEDecoder(8, (2, 3), prefix=1, out=8, dim=8, depth=0, heads=2)
    decoder.embed = decoder.norm = decoder.predict = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    order = Draws(0, torch.arange(4)).permutation("mask", 6)
    tokens = torch.randn(4, 1 + 2, 8)
    out = decoder(tokens, order.argsort(1))
    for n in range(4):
        for patch in range(6):
            rank = order[n].tolist().index(patch)
            content = tokens[n, 1 + rank] if rank < 2 else decoder.mask_token[0, 0]
            torch.testing.assert_close(out[n, patch], content + decoder.positions[0, patch])


def test_reconstruction_shows_each_visible_patch_at_its_place() -> None:
    method, pictures = mae(), images()
    decoder, draws = method.decoder, Draws(0, torch.arange(3))
    decoder.blocks, decoder.norm, decoder.predict = nn.Sequential(), nn.Identity(), nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    keep = draws.permutation("mask", COUNT)[:, :VISIBLE]
    content = decoder.embed(method.encode(pictures, keep))[:, 1:]
    out = method.reconstruct(pictures, draws)
    for n in range(3):
        visible = keep[n].tolist()
        for patch in range(COUNT):
            assert bool(out.masked[n, patch]) == (patch not in visible)
            token = content[n, visible.index(patch)] if patch in visible else decoder.mask_token[0, 0]
            torch.testing.assert_close(out.prediction[n, patch], token + decoder.positions[0, patch])


def test_the_decoder_tells_hidden_patches_apart_and_hears_the_prefix() -> None:
    method, pictures = mae(), images(1)
    draws = Draws(0, torch.arange(1))
    out = method.reconstruct(pictures, draws)
    hidden = out.prediction[0][out.masked[0]]
    assert torch.pdist(hidden).min() > 1e-4
    order = draws.permutation("mask", COUNT)
    tokens = method.encode(pictures, order[:, :VISIBLE])
    moved = tokens.clone()
    moved[:, 0] += 1.0
    assert not torch.allclose(method.decoder(moved, order.argsort(1)), out.prediction)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_the_loss_does_not_ask_for_changes_nothing(depth: int) -> None:
    method = mae(vit(reg_tokens=2), decoder_depth=depth).double()
    for parameter in method.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    order = Draws(0, torch.arange(3)).permutation("mask", COUNT)
    keep, wanted = order[:, :VISIBLE], order[:, VISIBLE:]
    tokens = method.encode(images().double(), keep)
    found = method.decoder.hidden(tokens, keep, wanted)
    expected = method.decoder(tokens, order.argsort(1)).gather(1, wanted[:, :, None].expand(-1, -1, 48))
    torch.testing.assert_close(found, expected)
    leaves = [p for p in method.parameters() if p.requires_grad]
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), leaves, retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_forward_is_the_loss_of_its_reconstruction(norm_pix: bool) -> None:
    method, pictures = mae(norm_pix=norm_pix), images()
    draws = Draws(0, torch.arange(3))
    out = method.reconstruct(pictures, draws)
    step = method(Views(pictures[None], draws), 0.0)
    assert step.loss.item() == pytest.approx(slow_loss(out.prediction, pictures, out.masked, PATCH, norm_pix), rel=1e-5)


@pytest.mark.parametrize(
    "args", [{}, {"class_token": False, "global_pool": "avg", "fc_norm": False}, {"reg_tokens": 2}]
)
def test_every_trained_parameter_gets_a_gradient(args: dict[str, Any]) -> None:
    method = mae(vit(**args)).train()
    method(Views(images()[None], Draws(0, torch.arange(3))), 0.0).loss.backward()
    without = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    fixed = [name for name, p in method.named_parameters() if not p.requires_grad]
    assert fixed == ["backbone.model.pos_embed"]


def test_the_start_is_the_authors_unless_weights_were_given() -> None:
    backbone = vit()
    method = mae(backbone)
    model = backbone.model
    assert isinstance(model, VisionTransformer) and model.pos_embed is not None
    torch.testing.assert_close(model.pos_embed[0, 1:], sincos((4, 4), 16)[0])
    assert not model.pos_embed[0, 0].any()
    for linear in (m for m in method.modules() if isinstance(m, nn.Linear)):
        bound = math.sqrt(6.0 / (linear.in_features + linear.out_features))
        assert 0.8 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()
    fan = model.patch_embed.proj.weight[0].numel() + 16
    assert model.patch_embed.proj.weight.abs().max() <= math.sqrt(6.0 / fan)

    trained = vit()
    trained.provenance = [{"task": "pretrain"}]
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    mae(trained)
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())


@pytest.mark.parametrize("norm_pix", [True, False])
def test_paint_undoes_the_targets_normalisation(norm_pix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method, pictures = mae(norm_pix=norm_pix), images()
    draws = Draws(0, torch.arange(3))
    out = method.reconstruct(pictures, draws)
    patches = patchify(pictures, PATCH)
    perfect = patches
    if norm_pix:
        perfect = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    monkeypatch.setattr(method, "reconstruct", lambda *_: out._replace(prediction=perfect))
    seen, painted = method.paint(pictures, draws)
    torch.testing.assert_close(painted, pictures)
    hidden = out.masked[:, :, None].expand(-1, -1, 48)
    assert not patchify(seen, PATCH)[hidden].any()
    assert torch.equal(patchify(seen, PATCH)[~hidden], patches[~hidden])


def test_training_lowers_the_loss() -> None:
    method = mae(decoder_dim=16).train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    ramp = torch.linspace(-1, 1, SIZE).expand(8, 3, SIZE, SIZE) * torch.linspace(0.5, 2, 8)[:, None, None, None]
    losses = []
    for step in range(30):
        loss = method(Views(ramp[None], Draws(0, torch.arange(8) + 8 * step)), 0.0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_mask_ratio_counts_patches() -> None:
    assert [mae(mask_ratio=ratio).visible for ratio in (0.75, 0.5, 0.9, 0.999)] == [4, 8, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, "method.mask_ratio"),
        ({"mask_ratio": 0.01}, "method.mask_ratio.*hides none"),
        ({"decoder_dim": 10, "decoder_heads": 2}, "method.decoder_dim"),
        ({"decoder_dim": 8, "decoder_heads": 3}, "method.decoder_dim"),
        ({"decoder_dim": 8, "decoder_heads": 0}, "method.decoder_dim"),
    ],
)
def test_values_that_do_not_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mae(**options)


def test_backbones_without_plain_patches_are_refused() -> None:
    with pytest.raises(UserError, match=r"method: mae needs a ViT, resnet10t is a ResNet; try vit_small"):
        MAE(create(SIZE, name="resnet10t"))
    with pytest.raises(UserError, match=r"backbone.pooling: .*; set pooling to mean or token"):
        MAE(vit(class_token=False, global_pool="map"))
    with pytest.raises(UserError, match=r"data.size: 18 px do not divide into square patches"):
        MAE(
            create(18, name="vit_tiny_patch16_224", args={"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2})
        )
