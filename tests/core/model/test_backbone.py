"""Backbones: what is exported is what is loaded, and what does not fit is said in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import ResNet, VisionTransformer
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.model import sizes
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.description import read_description
from rootstock.core.model.sincos import sincos
from rootstock.core.model.weights import load_strictly
from rootstock.core.train.optim import Optim, parameter_groups
from rootstock.finetune.baselines.registry import BASELINES

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
RESNET = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
TINY: list[tuple[str, int, dict[str, Any]]] = [
    ("resnet10t", 16, {"stem": "small", "args": RESNET}),
    ("vit_tiny_patch16_224", 16, {"pooling": "token", "args": VIT}),
    ("vit_tiny_patch16_224", 16, {"pooling": "mean", "args": VIT}),
    ("smallconv", 16, {}),
    ("lenet", 36, {"args": {"widths": [4, 4, 8]}}),
    ("cifar_resnet", 16, {"args": {"depth": 8, "widths": [4, 8, 8]}}),
    ("convnext_atto", 32, {"args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}),
    ("mobilenetv3_small_050", 32, {}),
    ("mobilenetv2_035", 32, {}),
    ("vgg11", 32, {"args": {"mlp_ratio": 0.01}}),
    ("swin_tiny_patch4_window7_224", 32, {"args": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}}),
]  # fmt: skip


def pictures(size: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def features(backbone: Backbone, size: int) -> Tensor:
    with torch.no_grad():
        return backbone.eval()(pictures(size))


def vit(size: int = 16, **options: Any) -> Backbone:
    return create(size, name="vit_tiny_patch16_224", args=VIT, **options)


@pytest.mark.parametrize(("name", "size", "options"), TINY, ids=[f"{n}-{o.get('pooling', '')}" for n, _, o in TINY])
def test_create_export_load_is_the_same_to_the_last_bit(
    name: str, size: int, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = create(size, name=name, **options)
    made.train()(pictures(size))  # BatchNorm's statistics must travel too
    before = features(made, size)
    assert before.shape == (2, made.feature_dim) and before.dtype == torch.float32
    made.provenance = [{"task": "pretrain", "steps": 3}]
    made.seen = {"pretrain": torch.tensor([-5, 7])}
    made.export(tmp_path)
    loaded = create(size, weights=str(tmp_path))
    assert torch.equal(features(loaded, size), before)
    assert loaded.spec == made.spec and (loaded.mean, loaded.std) == (made.mean, made.std)
    assert loaded.provenance == made.provenance
    assert torch.equal(loaded.seen["pretrain"], made.seen["pretrain"])
    described = json.loads((tmp_path / "backbone" / "backbone.json").read_text())
    assert (described["name"], described["feature_dim"]) == (name, made.feature_dim)


@pytest.mark.parametrize(("name", "size", "options"), TINY, ids=[f"{n}-{o.get('pooling', '')}" for n, _, o in TINY])
def test_tokens_are_what_the_model_pools(name: str, size: int, options: dict[str, Any]) -> None:
    made = create(size, name=name, **options).eval()
    with torch.no_grad():
        tokens = made.tokens(pictures(size))
        if isinstance(made.model, VisionTransformer):
            assert tokens.shape == (2, 17, 16)
            pooled = tokens[:, 0] if options["pooling"] == "token" else tokens[:, 1:].mean(1)
        elif hasattr(made.model, "forward_head"):
            found: Any = made.model
            side = round(tokens.shape[1] ** 0.5)
            grid = tokens.view(2, side, side, -1)  # places row by row
            channels_last = getattr(found, "output_fmt", "NCHW") == "NHWC"
            pooled = found.forward_head(grid if channels_last else grid.permute(0, 3, 1, 2))
        else:
            pooled = tokens.mean(1)
    torch.testing.assert_close(pooled, features(made, size))


def test_tokens_of_a_map_are_its_places_row_by_row() -> None:
    map = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    made = vit()
    for model, found in ((nn.Module(), map), (nn.Module(), map.permute(0, 2, 3, 1))):
        model.num_features, model.forward_features = 3, lambda images, found=found: found  # pyright: ignore[reportArgumentType]
        made.model = model
        tokens = made.tokens(pictures(16))
        assert torch.equal(tokens, torch.stack([map[:, :, i // 2, i % 2] for i in range(4)], 1))


def test_models_without_a_map_give_one_token() -> None:
    made = create(8, 3, BASELINES, name="pixels")
    assert torch.equal(made.tokens(pictures(8)), made(pictures(8))[:, None])


def test_several_maps_are_refused() -> None:
    made = vit()
    made.model.forward_features = lambda images: [images, images]  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"backbone.name: vit_tiny_patch16_224 returns no single feature map"):
        made.tokens(pictures(16))


def test_inception_gives_its_features_too() -> None:
    made = create(75, name="inception_v3")
    assert features(made, 75).shape == (2, made.feature_dim) == (2, 2048)


def test_channels_last_weights_export_as_the_same_numbers(tmp_path: Path) -> None:
    made = create(16, name="resnet10t", args=RESNET)
    before = features(made, 16)
    made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    made.export(tmp_path)
    torch.testing.assert_close(features(create(16, weights=str(tmp_path)), 16), before)
    assert all(t.is_contiguous() for t in load_file(tmp_path / "backbone" / "backbone.safetensors").values())


def test_the_small_stem_keeps_the_resolution() -> None:
    made = create(16, name="resnet10t", stem="small", args=RESNET, channels=5)
    net = made.model
    assert isinstance(net, ResNet) and isinstance(net.conv1, nn.Conv2d)
    assert (net.conv1.kernel_size, net.conv1.stride, net.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    x = net.maxpool(net.act1(net.bn1(net.conv1(torch.randn(2, 5, 16, 16)))))
    assert x.shape[2:] == (16, 16)
    with pytest.raises(UserError, match=r"backbone.stem: small is for ResNets, .* is a VisionTransformer"):
        vit(stem="small")


def test_pooling_is_the_class_token_or_the_mean_of_patches_of_one_set_of_weights() -> None:
    token, mean = vit(pooling="token").eval(), vit(pooling="mean").eval()
    mean.model.load_state_dict(token.model.state_dict())
    net, x = token.model, pictures(16)
    assert isinstance(net, VisionTransformer)
    tokens = net.forward_features(x)
    torch.testing.assert_close(token(x), tokens[:, 0])
    torch.testing.assert_close(mean(x), tokens[:, 1:].mean(1))


def test_pooling_may_differ_from_the_runs(tmp_path: Path) -> None:
    vit(pooling="token").export(tmp_path)
    assert create(16, weights=str(tmp_path)).spec["pooling"] == "token"
    assert create(16, weights=str(tmp_path), pooling="mean").spec["pooling"] == "mean"
    with pytest.raises(UserError, match=r"backbone.pooling is for ViTs"):
        create(16, name="resnet10t", pooling="mean", args=RESNET)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "resnet18"),
        ("stem", "small"),
        ("args", {"patch_size": 8}),
        ("mean", (0.1, 0.2, 0.3)),
        ("std", (1.0,) * 3),
    ],
)
def test_a_contradiction_with_the_run_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    vit().export(tmp_path)
    with pytest.raises(UserError, match=rf"backbone\.{key}: .* contradicts .* of the run .*; leave the key out"):
        create(16, weights=str(tmp_path), **{key: value})
    agreeing = {"name": "vit_tiny_patch16_224", "stem": "default", "args": VIT, "mean": (0.5,) * 3, "std": (0.5,) * 3}[
        key
    ]
    create(16, weights=str(tmp_path), **{key: agreeing})


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown backbone 'resnet19'; did you mean .*resnet18"):
        create(16, name="resnet19")
    with pytest.raises(UserError, match=r"did you mean smallconv"):
        create(16, name="smalconv")
    with pytest.raises(UserError, match=r"backbone.name: missing"):
        create(16)


def test_the_normalisation_is_timms_or_the_configs(tmp_path: Path) -> None:
    """timm's plain ViTs have 0.5, which few papers have; what was trained with stays with the weights."""
    assert vit().mean == vit().std == (0.5,) * 3
    own: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    made = vit(**own)
    assert {"mean": made.mean, "std": made.std} == own
    made.export(tmp_path)
    again = create(16, weights=str(tmp_path), mean=own["mean"])
    assert {"mean": again.mean, "std": again.std} == own
    bad: list[tuple[str, Any, str]] = [
        ("mean", (0.5,), "3 numbers, one a channel"),
        ("std", (1.0, 0.0, 1.0), "3 numbers above 0"),
    ]
    for key, given, words in bad:
        with pytest.raises(UserError, match=rf"backbone\.{key}: expected {words}"):
            vit(**{key: given})


def test_arguments_that_timm_does_not_take_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"timm cannot build resnet10t with .*breadth"):
        create(16, name="resnet10t", args={"breadth": 3})
    with pytest.raises(UserError, match=r"backbone.args: smallconv does not take \{'breadth': 3\}"):
        create(16, name="smallconv", args={"breadth": 3})
    with pytest.raises(UserError, match=r"backbone.args.img_size: 64 contradicts data.size: 16"):
        create(16, name="vit_tiny_patch16_224", args={**VIT, "img_size": 64})


def test_weights_that_cannot_be_had_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"backbone.weights: timm's weights for resnet18 cannot be loaded"):
        create(16, name="resnet18", weights="timm")
    with pytest.raises(UserError, match=r"timm has no weights for smallconv"):
        create(16, name="smallconv", weights="timm")
    with pytest.raises(UserError, match=r"backbone.stem: small has no weights at timm"):
        create(16, name="resnet18", weights="timm", stem="small")


def test_loading_is_strict_and_lists_what_differs(tmp_path: Path) -> None:
    made = vit()
    tensors = {name: value.clone() for name, value in made.model.state_dict().items()}
    del tensors["norm.bias"]
    tensors["norm.offset"] = torch.zeros(16)
    tensors["norm.weight"] = torch.zeros(8)
    with pytest.raises(UserError) as raised:
        load_strictly(made.model, tensors, "x")
    message = str(raised.value)
    assert "1 missing (norm.bias)" in message and "1 unexpected (norm.offset)" in message
    assert "1 of another shape (norm.weight)" in message and "\n" not in message
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w.safetensors does not fit this architecture"):
        vit(weights=str(tmp_path / "w.safetensors"))


def test_a_local_file_may_still_have_its_classifier(tmp_path: Path) -> None:
    made = create(16, name="resnet10t", args=RESNET)
    tensors = {**made.model.state_dict(), "fc.weight": torch.zeros(10, 16), "fc.bias": torch.zeros(10)}
    path = tmp_path / "w.safetensors"
    save_file(tensors, path)
    loaded = create(16, name="resnet10t", args=RESNET, weights=str(path))
    assert torch.equal(features(loaded, 16), features(made, 16))
    assert loaded.provenance == [{"task": "external", "weights": "w.safetensors"}]
    save_file({**tensors, "head.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"1 unexpected \(head.weight\)"):
        create(16, name="resnet10t", args=RESNET, weights=str(path))


@pytest.mark.parametrize("options", [{}, {"class_token": False}, {"no_embed_class": True}, {"reg_tokens": 3}])
def test_a_file_of_another_size_is_said_by_its_positions(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run says its size; a file has a grid of positions, and timm a size for each of its models."""
    said: list[str] = []
    monkeypatch.setattr(sizes, "warn", said.append)
    path = tmp_path / "w.safetensors"
    given = {"pooling": "mean", "args": {**VIT, **options}}
    save_file(create(24, name="vit_tiny_patch16_224", **given).model.state_dict(), path)
    create(24, name="vit_tiny_patch16_224", weights=str(path), **given)
    assert said == []
    create(40, name="vit_tiny_patch16_224", weights=str(path), **given)
    (line,) = said
    assert "data.size: 40 px are shown to a network that was trained at 24 px" in line and "\n" not in line


def test_the_size_of_other_weights(tmp_path: Path) -> None:
    vit_model, resnet = (timm.create_model(name, num_classes=0) for name in ("vit_tiny_patch16_224", "resnet10t"))
    of_timm: Any = resnet.pretrained_cfg
    assert sizes.trained_size(vit_model, "timm", {}) == 224
    assert sizes.trained_size(resnet, "timm", {}) == of_timm["input_size"][-1]
    assert sizes.trained_size(nn.Identity(), "timm", {}) is None
    assert sizes.trained_size(vit_model, "none", {}) is None
    assert sizes.trained_size(vit_model, "runs/x", {"size": 48}) == 48
    path = tmp_path / "w.safetensors"
    for tensor in (torch.zeros(1, 8, 192), torch.zeros(192)):  # 7 patches are no square
        save_file({"pos_embed": tensor}, path)
        assert sizes.trained_size(vit_model, str(path), {}) is None
    save_file({"conv.weight": torch.zeros(2)}, path)
    assert sizes.trained_size(resnet, str(path), {}) is None
    assert sizes.trained_size(vit_model, str(tmp_path / "missing.safetensors"), {}) is None


def test_position_embeddings_are_resampled_to_another_size(tmp_path: Path) -> None:
    made = vit(16)
    net = made.model
    assert isinstance(net, VisionTransformer) and net.pos_embed is not None
    ramp = torch.linspace(0, 1, 4)
    with torch.no_grad():  # channel 0 grows downwards, channel 1 to the right
        net.pos_embed[0, 1:, 0] = ramp.repeat_interleave(4)
        net.pos_embed[0, 1:, 1] = ramp.repeat(4)
        net.pos_embed[0, 0] = 5.0
    made.export(tmp_path)
    larger = create(32, weights=str(tmp_path)).model
    assert isinstance(larger, VisionTransformer) and larger.pos_embed is not None
    assert larger.pos_embed.shape == (1, 65, 16)
    assert bool((larger.pos_embed[0, 0] == 5.0).all())
    grid = larger.pos_embed[0, 1:].view(8, 8, 16).detach()
    assert bool((grid[1:-1].diff(dim=0)[..., 0] > 0).all()) and bool((grid[:, 1:-1].diff(dim=1)[..., 1] > 0).all())
    torch.testing.assert_close(grid[:, 0, 0], grid[:, 5, 0], rtol=1e-4, atol=1e-5)
    kept = "blocks.0.attn.qkv.weight"
    assert torch.equal(larger.state_dict()[kept], net.state_dict()[kept])


def test_embeddings_that_are_no_grid_are_listed_not_guessed(tmp_path: Path) -> None:
    made = vit()
    tensors = {**made.model.state_dict(), "pos_embed": torch.zeros(1, 13, 16)}
    with pytest.raises(UserError, match=r"1 of another shape \(pos_embed\)"):
        load_strictly(made.model, tensors, "x")


def test_folders_and_files_that_are_no_export_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist; expected none, timm"):
        create(16, weights=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds no finished backbone/ \(is the run finished\?\)"):
        create(16, weights=str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be read .*; expected a safetensors file"):
        create(16, name="resnet10t", weights=str(tmp_path / "missing.safetensors"))
    (tmp_path / "text.safetensors").write_text("no tensors here, whatever the name says")
    with pytest.raises(UserError, match=r"text.safetensors cannot be read"):
        create(16, name="resnet10t", weights=str(tmp_path / "text.safetensors"))


@pytest.mark.parametrize("damage", ["half", "key", "list"])
def test_a_damaged_description_is_one_sentence(damage: str, tmp_path: Path) -> None:
    vit().export(tmp_path)
    path = tmp_path / "backbone" / "backbone.json"
    text = path.read_text()
    without_args = json.dumps({key: value for key, value in json.loads(text).items() if key != "args"})
    path.write_text({"half": text[: len(text) // 2], "key": without_args, "list": "[]"}[damage])
    with pytest.raises(UserError, match=r"backbone.json is damaged"):
        read_description(str(tmp_path))


@pytest.mark.parametrize("name", ["backbone.safetensors", "seen.safetensors"])
def test_an_export_that_lost_a_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    vit().export(tmp_path)
    (tmp_path / "backbone" / name).unlink()
    with pytest.raises(UserError, match=rf"{name} cannot be read"):
        create(16, weights=str(tmp_path))


def test_layer_scales_differ_and_fall_towards_the_input() -> None:
    scales = vit().layer_scales(0.5)
    assert scales["patch_embed.proj.weight"] == scales["pos_embed"] == 0.5**4
    assert [scales[f"blocks.{k}.norm1.weight"] for k in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert set(vit().layer_scales(None).values()) == {1.0}
    assert vit().layer_scales(1.0).keys() == scales.keys()


@pytest.mark.parametrize(("name", "size", "options"), TINY, ids=[f"{n}-{o.get('pooling', '')}" for n, _, o in TINY])
def test_layer_decay_is_not_inert_for_any_architecture(name: str, size: int, options: dict[str, Any]) -> None:
    made = create(size, name=name, **options)
    scales = made.layer_scales(0.5)
    names = [name for name, _ in made.model.named_parameters()]
    assert list(scales) == names
    assert len(set(scales.values())) >= 3 and max(scales.values()) <= 1.0
    assert scales[names[0]] == min(scales.values())
    assert scales[names[-1]] == max(scales.values())

    method = nn.Module()
    method.backbone, method.head = made, nn.Linear(3, 2)
    groups = parameter_groups(method, Optim(lr=1.0, batch_size=2, duration=1, layer_decay=0.5, backbone_lr=0.1))  # pyright: ignore[reportArgumentType]
    rates = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert rates[id(method.head.weight)] == 1.0
    for key, parameter in made.model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.1 * scales[key])


def test_models_that_do_not_name_their_layers_refuse_layer_decay() -> None:
    backbone = vit()
    backbone.model.group_matcher = None  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"optim.layer_decay: .*leave layer_decay out"):
        backbone.layer_scales(0.5)


def test_position_embeddings_are_exempt_from_decay() -> None:
    backbone = vit()
    names = {name for name, p in backbone.model.named_parameters() if any(p is q for q in backbone.undecayed())}
    assert {"pos_embed", "cls_token"} <= names
    assert not any("weight" in name for name in names)


def test_a_frozen_backbone_stays_as_it_is_in_any_mode() -> None:
    backbone = create(16, name="resnet10t", args=RESNET)
    backbone.freeze()
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    holder = nn.Sequential(backbone, nn.Linear(backbone.feature_dim, 2)).train()
    holder(pictures(16)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters()) and not any(m.training for m in backbone.modules())
    assert holder[1].training


def test_a_stage_that_looked_at_target_labels_is_remembered(tmp_path: Path) -> None:
    """Tuning on the target's labels marks every later result, however blind its own stage was."""
    model = create(16, name="smallconv")
    assert model.selection("train-split") == "train-split"
    model.provenance.append({"task": "pretrain", "selection": "tuned-on-target"})
    model.export(tmp_path)
    later = create(16, weights=str(tmp_path))
    assert later.selection("last") == "tuned-on-target"
    assert later.selection("oracle") == "oracle"


def test_positions_may_be_sine_cosine_from_the_start(tmp_path: Path) -> None:
    """They stay as they are under training, and travel with the weights; the other weights are those without the key."""
    torch.manual_seed(0)
    own = vit().model
    torch.manual_seed(0)
    backbone = vit(positions="sincos")
    net = backbone.model
    assert isinstance(net, VisionTransformer) and isinstance(net.pos_embed, nn.Parameter)
    torch.testing.assert_close(net.pos_embed[0, 1:], sincos((4, 4), net.embed_dim)[0])
    assert not net.pos_embed[:, 0].any() and not net.pos_embed.requires_grad
    same = {name for name, value in own.state_dict().items() if torch.equal(value, net.state_dict()[name])}
    assert set(own.state_dict()) - same == {"pos_embed"}
    backbone.export(tmp_path)
    loaded = create(16, weights=str(tmp_path)).model
    assert isinstance(loaded, VisionTransformer) and isinstance(loaded.pos_embed, nn.Parameter)
    torch.testing.assert_close(loaded.pos_embed, net.pos_embed)
    assert loaded.pos_embed.requires_grad


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet10t", "args": RESNET}, "sincos is for ViTs .* resnet10t is not; leave positions out"),
        ({"name": "vit_tiny_patch16_224", "args": VIT | {"embed_dim": 18, "num_heads": 3}}, "multiple of 4"),
        ({"name": "vit_tiny_patch16_224", "args": VIT | {"pos_embed": "none"}}, "sincos is for ViTs"),
    ],
)
def test_positions_are_for_vits_that_have_some(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"backbone\.positions: .*{words}"):
        create(16, positions="sincos", **options)


def test_positions_of_weights_stay(tmp_path: Path) -> None:
    vit().export(tmp_path)
    with pytest.raises(UserError, match=r"backbone\.positions: .* has its own positions; leave positions out"):
        create(16, weights=str(tmp_path), positions="sincos")


@pytest.mark.parametrize("size", [0, -3, (1 << 14) + 1, 10**12, 10**30])
def test_a_size_that_no_picture_has_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"data.size: {size} px are given; expected 1 to 16384"):
        create(size, name="smallconv")
