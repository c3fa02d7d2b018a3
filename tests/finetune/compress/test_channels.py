"""What is pruned of a network: it computes what the whole one computes with the missing channels set to 0, and can be built again."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.macs import macs_of, parameters_of
from rootstock.core.model.pruned import give_sizes, read_pruned
from rootstock.finetune.compress.channels import coupled_channels
from rootstock.finetune.compress.kept import Kept, keep_channels
from rootstock.tests.finetune.compress.networks import CNNS, RESNET, TOKENS, chosen, classifier_of, named

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")


def images_of(classifier: Classifier, count: int = 3) -> Tensor:
    size = classifier.backbone.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def with_zeros(classifier: Classifier, kept: Kept, images: Tensor) -> Tensor:
    """The logits of the whole network, each of whose layers reads 0 for what is gone: by loops over single channels."""
    places = dict(classifier.backbone.model.named_modules()) | {"reader": classifier.head}
    hooks = []
    for place, sides in kept.items():
        if "in" not in sides:
            continue
        stays = set(sides["in"].tolist())

        def zero(module: nn.Module, given: tuple[Any, ...], stays: set[int] = stays) -> tuple[Any, ...]:
            read = given[0].clone()
            axis = 1 if isinstance(module, nn.Conv2d) else read.ndim - 1
            for channel in range(read.shape[axis]):
                if channel not in stays:
                    read.select(axis, channel).zero_()
            return (read,)

        hooks.append(places[place].register_forward_pre_hook(zero))
    with torch.no_grad():
        found = classifier(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("case", [*CNNS, *TOKENS], ids=named)
def test_a_pruned_network_is_the_whole_one_with_channels_set_to_0(
    case: tuple[str, int, dict[str, Any]], scope: Any, tmp_path: Path
) -> None:
    classifier = classifier_of(*case)
    whole, kept = copy.deepcopy(classifier), chosen(classifier, 0.5, scope)
    images, backbone = images_of(classifier), classifier.backbone
    macs, parameters = macs_of(backbone.model, 3, backbone.size), parameters_of(backbone.model)
    keep_channels(classifier, kept)
    assert macs_of(backbone.model, 3, backbone.size) < 0.8 * macs and parameters_of(backbone.model) < parameters
    expected = with_zeros(whole, kept, images)
    with torch.no_grad():
        found, features = classifier(images), backbone(images)
        quick = backbone.train()(images) if isinstance(backbone.model, VisionTransformer) else features
        backbone.eval()
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(quick, features, rtol=1e-4, atol=1e-5)
    assert features.shape[1] == backbone.feature_dim == classifier.head.in_features

    classifier.export(tmp_path)
    again = create(case[1], weights=str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(again(images), features)
        assert again.tokens(images).shape == backbone.tokens(images).shape
    assert again.spec == backbone.spec and again.feature_dim == backbone.feature_dim
    assert again.channels_are_last(torch.zeros(1, 1, 1, 1)) == backbone.channels_are_last(torch.zeros(1, 1, 1, 1))


def test_outputs_after_the_activation_can_be_zeroed_instead() -> None:
    """The channels within a residual block are not read by anything else, so its ReLU may give the zeros."""
    classifier = classifier_of("resnet10t", 16, {"stem": "small", "args": RESNET})
    whole, kept, images = copy.deepcopy(classifier), chosen(classifier, 0.5), images_of(classifier)
    inner = {place: sides for place, sides in kept.items() if ".conv" in place or ".bn1" in place}
    alone: dict[str, dict[Any, Tensor]] = {}
    for stage in range(1, 5):
        block = f"layer{stage}.0"
        alone[f"{block}.conv1"] = {"out": inner[f"{block}.conv1"]["out"]}
        alone[f"{block}.bn1"] = {"out": inner[f"{block}.bn1"]["out"]}
        alone[f"{block}.conv2"] = {"in": inner[f"{block}.conv2"]["in"]}
        act: Any = whole.backbone.model.get_submodule(f"{block}.act1")
        stays = set(alone[f"{block}.conv1"]["out"].tolist())
        layer: Any = whole.backbone.model.get_submodule(f"{block}.bn1")
        gone = [channel for channel in range(layer.num_features) if channel not in stays]

        def zero(_: nn.Module, __: Any, found: Tensor, gone: list[int] = gone) -> Tensor:
            return found.index_fill(1, torch.tensor(gone), 0.0)

        act.register_forward_hook(zero)
    with torch.no_grad():
        expected = whole(images)
        keep_channels(classifier, alone)
        found = classifier(images)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_what_is_pruned_twice_is_described_once(tmp_path: Path) -> None:
    classifier = classifier_of("resnet10t", 16, {"args": RESNET})
    keep_channels(classifier, chosen(classifier, 0.3))
    first = json.loads(json.dumps(classifier.backbone.spec["pruned"]))
    keep_channels(classifier, chosen(classifier, 0.3))
    second = classifier.backbone.spec["pruned"]
    assert second["layers"].keys() >= first["layers"].keys() and second != first
    classifier.export(tmp_path)
    again, images = create(16, weights=str(tmp_path)).eval(), images_of(classifier)
    with torch.no_grad():
        assert torch.equal(again(images), classifier.backbone(images))


def test_features_keep_their_width_where_the_head_cannot_lose_columns() -> None:
    backbone = classifier_of("smallconv", 16, {}).backbone
    free, held = coupled_channels(backbone, features=True), coupled_channels(backbone, features=False)
    assert len(free) == 4 and [one.root for one in held] == [one.root for one in free[:3]]


def test_attention_goes_by_whole_heads() -> None:
    classifier = classifier_of(*TOKENS[0])
    found = coupled_channels(classifier.backbone, features=True)
    assert [(one.root, one.units, one.whole) for one in found] == [
        ("blocks.0.attn.qkv", 4, True),
        ("blocks.0.mlp.fc1", 64, False),
        ("blocks.1.attn.qkv", 4, True),
        ("blocks.1.mlp.fc1", 64, False),
    ]
    keep_channels(classifier, {"blocks.0.attn.qkv": {"out": torch.arange(48).view(3, 4, 4)[:, 1:3].flatten()},
                               "blocks.0.attn.proj": {"in": torch.arange(4, 12)}})  # fmt: skip
    assert classifier.backbone.spec["pruned"]["layers"] == {
        "blocks.0.attn": {"num_heads": 2, "attn_dim": 8},
        "blocks.0.attn.qkv": {"out_features": 24},
        "blocks.0.attn.proj": {"in_features": 8},
    }


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "convnextv2_atto",
            {"args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}},
            "method.prune.macs: no layer of convnextv2_atto can be pruned by itself, since its channels are normalised or divided "
            "together; give method.prune.weights instead, or use another network",
        ),
    ],
)
def test_networks_that_cannot_be_pruned_are_refused(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        coupled_channels(create(32, name=name, **options), features=True)
    assert str(error.value) == sentence


def test_what_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torch-pruning has lost the way of channels."""
    classifier = classifier_of("smallconv", 16, {})
    kept = chosen(classifier, 0.5)
    wrong = {place: dict(sides) for place, sides in kept.items()}
    wrong["blocks.1.0"]["in"] = wrong["blocks.1.0"]["in"].flip(0)
    with pytest.raises(UserError) as error:
        keep_channels(classifier, wrong)
    assert str(error.value) == (
        "method.prune.macs: smallconv without some channels does not compute what it computes with these set to 0, so it cannot be pruned "
        "by channels; give method.prune.weights instead, or use another network"
    )


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(UserError) as error:
        coupled_channels(create(16, name="smallconv"), features=True)
    assert str(error.value) == (
        "method.prune needs torch-pruning; `pip install 'torch-pruning>=1.6'`, or give method.prune.weights, which needs none"
    )


DAMAGED: list[Any] = [
    3,
    {"layers": {}},
    {"layers": {"conv1": 3}, "network": {}},
    {"layers": {}, "network": {"num_features": 0}},
    {"layers": {"conv1": {"groups": True}}, "network": {}},
]


@pytest.mark.parametrize("content", DAMAGED)
def test_an_entry_that_no_version_wrote_is_damage(content: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_pruned(content)


@pytest.mark.parametrize(
    ("layers", "network", "told"),
    [
        ({"nowhere": {"out_channels": 2}}, {}, "layer nowhere cannot have the sizes {'out_channels': 2}"),
        ({"blocks.0.0": {"out_channels": 17}}, {}, "layer blocks.0.0 cannot have the sizes {'out_channels': 17}"),
        ({"blocks.0.0": {"kernel_size": 1}}, {}, "layer blocks.0.0 cannot have the sizes {'kernel_size': 1}"),
        ({}, {"embed_dim": 4}, "the network has no width embed_dim"),
    ],
)
def test_sizes_that_a_network_cannot_have_are_refused(layers: Any, network: Any, told: str) -> None:
    with pytest.raises(ValueError, match="^" + told.replace("{", r"\{") + "$"):
        give_sizes(create(16, name="smallconv").model, {"layers": layers, "network": network})


def test_a_pruned_network_is_used_like_any_other(tmp_path: Path) -> None:
    """Another size of pictures, adapters, frozen layers, rates by layer and drop path."""
    classifier = classifier_of("vit_tiny_patch16_224", 16, {"pooling": "mean", "args": TOKENS[0][2]["args"]})
    keep_channels(classifier, chosen(classifier, 0.5))
    classifier.export(tmp_path)
    images, lora = torch.randn(2, 3, 24, 24), {"rank": 2, "alpha": 2, "targets": ["qkv"], "unfreeze": 1}
    ways: list[dict[str, Any]] = [{}, {"freeze": "stage1"}, {"drop_path": 0.2}, {"lora": lora}]
    for options in ways:
        made = create(24, weights=str(tmp_path), **options)
        made(images).sum().backward()
        assert made.layer_scales(0.5)["norm.weight"] == 1.0 and made.tokens(images).shape == (2, 37, 16)
        made.export(tmp_path / "again")
        again = create(24, weights=str(tmp_path / "again"))
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(images), made.eval()(images))
