"""Blocks are found in every kind of network, and recomputing them changes nothing but what is kept."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.method import Method
from rootstock.core.model import norm
from rootstock.core.model.recompute import recompute, repeated_blocks
from rootstock.core.model.vit_blocks import asks_for_one, last_tokens
from rootstock.core.run.directory import Run
from rootstock.core.train.parallel import strategy_for

VIT: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
NETWORKS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "vit": ("vit_tiny_patch16_224", VIT, "Block", 3),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4},
        "SwinTransformerBlock",
        4,
    ),
    "resnet": ("resnet18", {"channels": (8, 8, 16, 16), "stem_width": 8}, "BasicBlock", 8),
    "convnext": ("convnext_atto", {"depths": (2, 2, 2, 2), "dims": (8, 8, 16, 16)}, "ConvNeXtBlock", 8),
}


def network(kind: str, **changed: Any) -> nn.Module:
    torch.manual_seed(0)
    name, args, _, _ = NETWORKS[kind]
    return timm.create_model(name, **{**args, **changed})


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_block_is_found_once(kind: str) -> None:
    found = repeated_blocks(network(kind))
    _, _, name, count = NETWORKS[kind]
    assert [type(block).__name__ for block in found] == [name] * count and len(set(found)) == count


def test_what_repeats_no_blocks_is_refused() -> None:
    layers = nn.Sequential(nn.ReLU(), nn.ReLU())
    assert repeated_blocks(nn.ModuleList([layers])) == [] == repeated_blocks(layers)
    with pytest.raises(UserError, match=r"run\.activation_checkpointing: this network repeats no blocks"):
        recompute(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def kept_by(forward: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What comes out, and how many numbers are kept for the backward pass."""
    numbers: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        numbers[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    return out, sum(numbers.values())


@pytest.mark.parametrize(
    ("kind", "changed", "share"),
    [
        ("vit", {"drop_path_rate": 0.5}, 0.5),
        ("swin", {}, 0.5),
        ("resnet", {}, 0.9),
    ],  # a ResNet's stem is its largest map
)
def test_recomputed_blocks_give_the_same_bits_and_keep_less(kind: str, changed: dict[str, Any], share: float) -> None:
    plain = network(kind, **changed)
    norm.convert_batch_norms(plain, "local")
    other = copy.deepcopy(plain)
    assert recompute(other) == NETWORKS[kind][3]
    side = 32 if kind == "resnet" else 16
    images = torch.randn(8, 3, side, side)
    kept = []
    for model in (plain, other):
        torch.manual_seed(1)  # drop path draws anew in the backward pass
        out, numbers = kept_by(lambda model=model: model(images))
        out.square().sum().backward()
        norm.commit(norm.layers(model))
        kept.append(numbers)
    assert kept[1] < share * kept[0]
    for (name, expected), found in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert expected.grad is not None and found.grad is not None and torch.equal(expected.grad, found.grad), name
    # Running statistics among them: a recomputed forward pass counts once.
    assert plain.state_dict().keys() == other.state_dict().keys()
    for name, expected in plain.state_dict().items():
        assert torch.equal(expected, other.state_dict()[name]), name


def test_recomputed_blocks_are_called_as_a_whole() -> None:
    """What looks into a block would go around its recomputation; the numbers are the same to rounding."""
    vit: Any = network("vit", class_token=True, global_pool="token").eval()
    other = copy.deepcopy(vit)
    recompute(other)
    tokens = torch.randn(2, 5, 16)
    assert asks_for_one(vit) and not asks_for_one(other)
    torch.testing.assert_close(last_tokens(other.blocks[-1], tokens, 2), last_tokens(vit.blocks[-1], tokens, 2))


def test_a_copy_recomputes_itself() -> None:
    """FSDP2 trains a copy, a teacher is one: it must not call the blocks of the original."""
    vit: Any = network("vit")
    recompute(vit)
    copied = copy.deepcopy(vit)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
    assert copied(torch.randn(1, 3, 16, 16)).abs().sum() > 0


class Holder(Method):
    """A method that has a backbone and no more."""

    rows_per_position, couples_samples = 1, False

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone


def test_a_run_asks_for_it(opened: Callable[..., Run]) -> None:
    run, method = opened(activation_checkpointing=True), Holder(network("vit"))
    strategy_for(method, run)
    assert all("forward" in vars(block) for block in repeated_blocks(method))
    with pytest.raises(UserError, match="repeats no blocks"):
        strategy_for(Holder(nn.Linear(2, 2)), run)
