"""Layer decay by BEiT's numbers, written out by hand for four kinds of network."""

from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.drop_path import keyed_drop_paths
from rootstock.core.train.optim import Optim, parameter_groups

D = 0.5
VIT = {"patch_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}
# Name, arguments, whether layers are stages; then parameters with the power of the decay that their rate has: the first layer's, the
# layers' in between, the last one's and what comes after it.
CASES: dict[str, tuple[str, dict[str, Any], bool, dict[str, int]]] = {
    # Three blocks: 0 | 1 2 3 | 4, so the embedding has decay^4.
    "vit": (
        "vit_tiny_patch16_224",
        {"args": {**VIT, "reg_tokens": 2, "pre_norm": True}, "pooling": "token"},
        False,
        {
            "cls_token": 4, "reg_token": 4, "pos_embed": 4, "patch_embed.proj.weight": 4, "norm_pre.weight": 4,
            "blocks.0.attn.qkv.weight": 3, "blocks.1.norm1.bias": 2, "blocks.2.mlp.fc2.weight": 1, "norm.weight": 0,
        },
    ),
    "vit by stages": (
        "vit_tiny_patch16_224",
        {"args": VIT, "pooling": "fc_norm"},
        True,
        {"cls_token": 4, "blocks.0.attn.qkv.weight": 3, "blocks.2.norm2.bias": 1, "fc_norm.weight": 0, "fc_norm.bias": 0},
    ),
    # Stages 1, 1, 2, 1: five blocks, and the head is 6; a downsampling belongs to the block after it.
    "convnext": (
        "convnext_atto",
        {"args": {"depths": [1, 1, 2, 1], "dims": [4, 4, 6, 8]}},
        False,
        {
            "stem.0.weight": 6, "stages.0.blocks.0.conv_dw.weight": 5, "stages.1.downsample.1.weight": 4,
            "stages.2.blocks.0.norm.bias": 3, "stages.2.blocks.1.mlp.fc1.weight": 2, "stages.3.blocks.0.conv_dw.weight": 1,
            "head.norm.weight": 0,
        },
    ),
    "convnext by stages": (
        "convnext_atto",
        {"args": {"depths": [1, 1, 2, 1], "dims": [4, 4, 6, 8]}},
        True,
        {"stem.0.weight": 5, "stages.0.blocks.0.conv_dw.weight": 4, "stages.2.blocks.1.norm.bias": 2, "stages.3.downsample.0.bias": 1,
         "head.norm.bias": 0},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"args": {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2}},
        False,
        {"patch_embed.proj.weight": 4, "layers.0.blocks.0.attn.qkv.weight": 3, "layers.1.downsample.reduction.weight": 2,
         "layers.1.blocks.0.norm1.bias": 2, "layers.1.blocks.1.mlp.fc1.weight": 1, "norm.weight": 0},
    ),
    # Two blocks a stage: 0 | 1 to 8 | 9.
    "resnet": (
        "resnet18",
        {"args": {"channels": [4, 4, 4, 4], "stem_width": 4}},
        False,
        {"conv1.weight": 9, "bn1.weight": 9, "layer1.0.conv1.weight": 8, "layer1.1.conv1.weight": 7, "layer3.0.downsample.0.weight": 4,
         "layer4.1.bn2.bias": 1},
    ),
    "resnet by stages": (
        "resnet18",
        {"args": {"channels": [4, 4, 4, 4], "stem_width": 4}},
        True,
        {"conv1.weight": 5, "bn1.bias": 5, "layer1.0.conv1.weight": 4, "layer1.1.conv2.weight": 4, "layer2.0.conv1.weight": 3,
         "layer4.0.conv1.weight": 1, "layer4.1.bn2.bias": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rates_by_hand(case: str) -> None:
    name, options, stages, powers = CASES[case]
    backbone = create(32, name=name, **options)
    scales = backbone.layer_scales(D, stages)
    assert {key: scales[key] for key in powers} == {key: D**power for key, power in powers.items()}
    method = nn.Module()
    method.backbone, method.head = backbone, nn.Linear(2, 2)
    groups = "stages" if stages else "blocks"
    found = parameter_groups(method, Optim(lr=1.0, batch_size=2, duration=1, layer_decay=D, layer_groups=groups))  # pyright: ignore[reportArgumentType]
    rates = {parameter: group["lr_scale"] for group in found for parameter in group["params"]}
    parameters = dict(backbone.model.named_parameters())
    assert rates[method.head.weight] == 1.0
    assert all(rates[parameters[key]] == scales[key] for key in powers)


def test_what_timm_counts_to_the_last_block_stays_there_unless_it_is_a_norm() -> None:
    scales = create(32, name="mobilenetv2_035").layer_scales(D)
    last = min(power for key, power in scales.items() if key.startswith("blocks.6"))
    assert scales["conv_head.weight"] == last == D and scales["bn2.weight"] == 1.0


@pytest.mark.parametrize(
    ("name", "rate", "said"),
    [
        ("vgg11", 0.1, "vgg11 has no residual branches"),
        ("smallconv", 0.1, "smallconv has no residual branches"),
        ("resnet18", 1.0, "expected 0 or more and less than 1, got 1.0"),
    ],
)
def test_drop_path_that_a_network_cannot_have_is_refused(name: str, rate: float, said: str) -> None:
    with pytest.raises(UserError, match=f"backbone.drop_path: {said}"):
        create(32, name=name, drop_path=rate)


def made(tmp_path: Any, pooling: str) -> Backbone:
    torch.manual_seed(0)
    first = create(16, name="vit_tiny_patch16_224", args=VIT, pooling=pooling)  # pyright: ignore[reportArgumentType]
    nn.init.normal_(first.model.norm.weight if pooling == "token" else first.model.fc_norm.weight)  # pyright: ignore
    first.export(tmp_path)
    return first


def test_the_mean_is_normalised_by_a_new_norm(tmp_path: Any) -> None:
    """As MAE's code: the weights' own last norm goes, and one that begins at 1 and 0 follows the mean over patches."""
    first = made(tmp_path, "token")
    model: Any = create(16, weights=str(tmp_path), pooling="fc_norm", drop_path=0.2).eval()
    vit: Any = first.model
    images = torch.randn(3, 3, 16, 16)
    tokens = vit.blocks(vit._pos_embed(vit.patch_embed(images)))[:, 1:]
    mean = tokens.mean(1)
    expected = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(model(images), expected)
    assert "norm.weight" not in model.model.state_dict()


def test_a_trained_fc_norm_is_kept_and_drop_path_is_not_exported(tmp_path: Any) -> None:
    first = made(tmp_path, "fc_norm")
    again = create(16, weights=str(tmp_path), drop_path=0.3)
    assert again.spec == first.spec and again.spec["pooling"] == "fc_norm"
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.eval()(images), first.eval()(images))
    assert not torch.equal(again.train()(images), first.train()(images))  # only one of both drops paths
    with pytest.raises(UserError, match=r"1 missing \(|2 missing \(norm.bias"):
        create(16, weights=str(tmp_path), pooling="mean")


def test_weights_of_a_file_and_of_timm_get_drop_path_and_a_new_norm_too(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's weights are drawn here, and kept in a file, both with the norm before pooling."""
    args: dict[str, Any] = {**VIT, "img_size": 16}
    straight = timm.create_model
    torch.manual_seed(3)
    drawn = straight("vit_tiny_patch16_224", num_classes=0, **args).state_dict()
    nn.init.normal_(drawn["norm.weight"])
    save_file(drawn, tmp_path / "weights.safetensors")

    def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model = straight(name, **kwargs)
        if pretrained:
            model.load_state_dict(drawn)
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    for weights in ("timm", str(tmp_path / "weights.safetensors")):
        made = create(16, name="vit_tiny_patch16_224", args=VIT, weights=weights, pooling="fc_norm", drop_path=0.1)
        found = made.model.state_dict()
        assert found.keys() == drawn.keys() - {"norm.weight", "norm.bias"} | {"fc_norm.weight", "fc_norm.bias"}
        assert all(torch.equal(found[key], drawn[key]) for key in found if not key.startswith("fc_norm"))
        assert torch.equal(found["fc_norm.weight"], torch.ones(8)) and len(keyed_drop_paths(made)) == 4
