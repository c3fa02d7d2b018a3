"""Parts of a ViT's forward put together give timm's own, and what is hidden is hidden."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create
from rootstock.core.model.lora import add_lora
from rootstock.core.model.vit_blocks import PackedSequences, asks_for_one, first_token, is_packable
from rootstock.core.model.vit_tokens import attend, embed, keep_patches, last_attention, plain_vit, transform

SIZE, COUNT, DIM = 16, 16, 16
ARGS: dict[str, Any] = {"patch_size": 4, "embed_dim": DIM, "depth": 2, "num_heads": 2}


def vit(**args: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return plain_vit(create(SIZE, name="vit_tiny_patch16_224", pooling="mean", args={**ARGS, **args}).eval(), "mae")


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("args", [{}, {"class_token": False}, {"reg_tokens": 2}, {"pre_norm": True}])
def test_embedding_and_transforming_is_timms_forward(args: dict[str, Any]) -> None:
    model = vit(**args)
    torch.testing.assert_close(transform(model, embed(model, images())), model.forward_features(images()))


def test_hidden_patches_are_the_mask_token_and_cannot_be_seen() -> None:
    model, mask = vit(), torch.randn(DIM)
    hidden = torch.zeros(3, COUNT, dtype=torch.bool)
    hidden[:, 5] = True
    tokens = embed(model, images(), hidden, mask)
    plain = embed(model, images())
    assert model.pos_embed is not None
    torch.testing.assert_close(tokens[:, 1 + 5], (mask + model.pos_embed[0, 1 + 5]).expand(3, -1))
    others = [i for i in range(1 + COUNT) if i != 1 + 5]
    assert tokens[:, others].equal(plain[:, others])
    changed = images()
    changed[:, :, 4:8, 4:8] += 1.0  # patch 5: second row, second column
    assert embed(model, changed, hidden, mask).equal(tokens) and not embed(model, changed).equal(plain)


def test_kept_patches_are_those_of_their_numbers() -> None:
    tokens = torch.arange(2 * (1 + COUNT)).view(2, -1, 1).float().expand(-1, -1, 3)
    kept = keep_patches(tokens, torch.tensor([[2, 0], [7, 15]]), 1)
    assert kept[..., 0].tolist() == [[0, 3, 1], [17, 25, 33]]


def test_padding_changes_nothing_for_the_others() -> None:
    """Attention over 5 seen tokens among noise is attention over these 5 alone."""
    model = vit()
    tokens = embed(model, images())
    seen = torch.zeros(3, 1 + COUNT, dtype=torch.bool)
    seen[:, :5] = True
    alone = transform(model, tokens[:, :5])
    for noise in (0.0, 5.0):
        padded = torch.where(seen[:, :, None], tokens, noise * torch.randn_like(tokens))
        torch.testing.assert_close(transform(model, padded, seen)[:, :5], alone, rtol=1e-5, atol=1e-6)
    assert not transform(model, tokens)[:, :5].allclose(alone, atol=1e-3)


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_attention_is_what_the_last_block_computes(pooling: str) -> None:
    torch.manual_seed(0)
    model = plain_vit(create(SIZE, name="vit_tiny_patch16_224", pooling=pooling, args=ARGS).eval(), "mae")  # type: ignore[arg-type]
    maps = last_attention(model, images())
    assert maps.shape == (3, 2, 4, 4)
    caught: list[Tensor] = []
    block: Any = model.blocks[1]
    block.attn.fused_attn = False
    handle = block.attn.attn_drop.register_forward_hook(lambda _module, _args, out: caught.append(out))
    model(images())
    handle.remove()
    rows = caught[0][:, :, 0] if pooling == "token" else caught[0][:, :, 1:].mean(2)
    torch.testing.assert_close(maps.flatten(2), rows[:, :, 1:])


def test_what_is_no_plain_vit_is_refused() -> None:
    with pytest.raises(UserError, match=r"method: simmim needs a ViT, smallconv is a SmallConv"):
        plain_vit(create(SIZE, name="smallconv"), "simmim")
    with pytest.raises(UserError, match=r"data.size: 18 px do not divide"):
        plain_vit(create(18, name="vit_tiny_patch16_224", args=ARGS), "mae")


def shapes(n: int = 5) -> tuple[Tensor, Tensor]:
    """Which of 12 tokens there are, bool [n, 12], two rows as many, and which of these ask."""
    generator = torch.Generator().manual_seed(3)
    seen = torch.rand(n, 12, generator=generator) < torch.tensor([0.3, 0.5, 0.9, 0.5, 1.1])[:, None]
    seen[3] = seen[1].flip(0)
    seen[:, 4] = True
    asking = seen & (torch.rand(n, 12, generator=generator) < 0.4)
    asking[:, 4] = True
    return seen, asking


@pytest.mark.parametrize("args", [{}, {"init_values": 0.3}, {"qk_norm": True}, {"qkv_bias": False}])
def test_packed_blocks_do_what_timms_do_with_a_mask(args: dict[str, Any]) -> None:
    model = vit(**args).double()
    blocks: Any = model.blocks
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    seen, asking = shapes()
    assert len(seen.sum(1).unique()) == 4 and seen.sum(1).max() == 12
    tokens = torch.randn(5, 12, DIM, dtype=torch.float64, requires_grad=True)
    masked = tokens
    for block in blocks:
        masked = block(masked, attn_mask=seen[:, None, None, :])
    pack = PackedSequences(seen, asking)
    assert torch.equal(pack.padded(pack.rows(tokens))[seen], tokens[seen])
    rows = pack.through(blocks[0], pack.rows(tokens))
    found = pack.padded(pack.attend_from(blocks[1], rows))
    torch.testing.assert_close(found[asking], masked[asking])
    assert not found[~asking].any()
    torch.testing.assert_close(attend(blocks, tokens, seen)[seen], masked[seen])
    leaves = [tokens, *blocks.parameters()]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), leaves),
        torch.autograd.grad(masked[asking].square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_blocks_that_drop_paths_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rate is drawn for each image there, not for each token."""
    assert all(map(is_packable, vit().blocks))
    assert [is_packable(block) for block in vit(drop_path_rate=0.5).blocks] == [True, False]
    monkeypatch.setattr(PackedSequences, "through", None)
    model, (seen, _) = vit(drop_path_rate=0.5), shapes()
    assert attend(model.blocks, torch.randn(5, 12, DIM), seen).isfinite().all()


@pytest.mark.parametrize(
    "args", [{}, {"init_values": 0.3}, {"qk_norm": True}, {"reg_tokens": 2}, {"pre_norm": True}, {"depth": 1}]
)
def test_features_are_timms_without_the_last_blocks_other_tokens(args: dict[str, Any]) -> None:
    backbone = create(SIZE, name="vit_tiny_patch16_224", args={**ARGS, **args}).double()
    model: Any = backbone.model
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    assert asks_for_one(model)
    pictures, leaves = images().double(), list(model.parameters())
    found, expected = backbone(pictures), model(pictures)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_paths_are_dropped_for_the_same_images() -> None:
    model: Any = create(SIZE, name="vit_tiny_patch16_224", args={**ARGS, "drop_path_rate": 0.5}).train().model
    results = []
    for forward in (lambda: first_token(model, images(8)), lambda: model(images(8))):
        torch.manual_seed(3)
        results.append(forward())
    torch.testing.assert_close(*results)


def test_other_poolings_and_adapted_layers_take_the_whole_way() -> None:
    adapted = create(SIZE, name="vit_tiny_patch16_224", args=ARGS).model
    add_lora(adapted, "a ViT", rank=2, alpha=4, targets=["qkv"], unfreeze=0)
    assert not asks_for_one(adapted)
    assert not asks_for_one(create(SIZE, name="vit_tiny_patch16_224", pooling="mean", args=ARGS).model)
    assert not asks_for_one(create(SIZE, name="smallconv").model)
    checkpointed: Any = create(SIZE, name="vit_tiny_patch16_224", args=ARGS).model
    checkpointed.set_grad_checkpointing()
    assert not asks_for_one(checkpointed)
