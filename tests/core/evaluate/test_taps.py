"""Taps against forward hooks and sums written out."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.evaluate.taps import TapLayout, Taps, available_taps, layout_of
from rootstock.core.model.backbone import Backbone, create
from rootstock.finetune.baselines.registry import BASELINES

SMALL = {"embed_dim": 16, "depth": 5, "num_heads": 2}
PATCH = {**SMALL, "patch_size": 8}
VITS: dict[str, dict[str, Any]] = {
    "token": {"name": "vit_tiny_patch16_224", "args": PATCH},
    "mean": {"name": "vit_tiny_patch16_224", "args": PATCH, "pooling": "mean"},
    "fc-norm": {"name": "vit_tiny_patch16_224", "args": {**PATCH, "global_pool": "avg"}},
    "registers": {"name": "vit_small_patch14_reg4_dinov2", "args": {**PATCH, "img_size": 16}},
    "no-token": {"name": "vit_medium_patch16_reg4_gap_256", "args": PATCH},
    "distilled": {"name": "deit_tiny_distilled_patch16_224", "args": PATCH},
    "beit": {"name": "beit_base_patch16_224", "args": PATCH},
}
SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2, "patch_size": 4}
MAPS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "resnet": ({"name": "resnet10t", "args": {"channels": (8, 8, 16, 16)}}, ["act1", "layer1", "layer2", "layer3", "layer4"]),
    "swin": ({"name": "swin_tiny_patch4_window7_224", "args": SWIN}, ["layers.0", "layers.1"]),
    "convnext": (
        {"name": "convnext_atto", "args": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}},
        [f"stages.{i}" for i in range(4)],
    ),
    "smallconv": ({"name": "smallconv", "args": {"widths": (4, 8, 8, 16)}}, [f"blocks.{i}" for i in range(4)]),
}  # fmt: skip


def backbone_of(spec: dict[str, Any], size: int = 16) -> Backbone:
    torch.manual_seed(0)
    backbone = create(size, **spec)
    with torch.no_grad():  # new ViTs have zero class tokens and norms of one, which would hide what is missing
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone


def pictures(backbone: Backbone, n: int = 3) -> Tensor:
    return torch.randn(n, 3, backbone.size, backbone.size, generator=torch.Generator().manual_seed(1))


def hooked(backbone: Backbone, names: list[str], images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the backbone gives, and what some of its layers give, by forward hooks."""
    found: list[Tensor] = []
    model: Any = backbone.model
    layers = dict(model.named_modules())
    handles = [layers[name].register_forward_hook(lambda *args: found.append(args[2].clone())) for name in names]
    with torch.no_grad():
        pooled = backbone.eval()(images)
    for handle in handles:
        handle.remove()
    return pooled, found


@pytest.mark.parametrize("kind", VITS)
def test_taps_of_a_vit_are_those_of_hooks(kind: str) -> None:
    backbone = backbone_of(VITS[kind])
    images = pictures(backbone)
    pooled, blocks = hooked(backbone, [f"blocks.{i}" for i in range(5)], images)
    model: Any = backbone.model
    late = model.fc_norm if kind in ("fc-norm", "no-token", "beit") else nn.Identity()
    prefix = {"registers": 5, "no-token": 4, "distilled": 2}.get(kind, 1)
    backbone.train()
    found = Taps(backbone, available_taps(backbone))(images)
    assert backbone.training and all(not rows.requires_grad for rows in found.values())
    with torch.no_grad():
        backbone.eval()
        assert torch.equal(found["pooled"], pooled) and torch.equal(found["tokens"], backbone.tokens(images))
        normed = [model.norm(block) for block in blocks]
        mean = late(normed[-1][:, prefix:].sum(1) / 4)
        expected = {"tokens": normed[-1], "patches": normed[-1][:, prefix:], "mean": mean}
        expected |= {f"block{i}": block[:, prefix:].sum(1) / 4 for i, block in enumerate(blocks)}
        if kind != "no-token":
            classes = [late(one[:, 0]) for one in normed]
            expected |= {"cls": classes[-1], "cls+mean": torch.cat([classes[-1], mean], 1)}
            expected |= {"last4": torch.cat(classes[1:], 1), "last4+mean": torch.cat([*classes[1:], mean], 1)}
    assert set(found) == {"pooled", *expected}
    for name, rows in expected.items():
        torch.testing.assert_close(found[name], rows, msg=lambda text, name=name: f"{name}: {text}")
    assert Taps(backbone).grid == (2, 2)
    if kind in ("mean", "fc-norm", "beit"):
        torch.testing.assert_close(found["mean"], pooled)
    elif kind in ("token", "registers"):
        assert torch.equal(found["cls"], pooled)


@pytest.mark.parametrize("kind", MAPS)
def test_taps_of_maps_are_those_of_hooks(kind: str) -> None:
    spec, layers = MAPS[kind]
    backbone = backbone_of(spec, 32)
    images = pictures(backbone)
    pooled, maps = hooked(backbone, layers, images)
    names = available_taps(backbone)
    assert names == ("pooled", "tokens", "patches", *(f"stage{i}" for i in range(len(layers))))
    taps = Taps(backbone, names)
    found = taps(images)
    rows, columns = taps.grid or (0, 0)
    last = maps[-1] if kind == "swin" else maps[-1].permute(0, 2, 3, 1)
    assert last.shape[1:3] == (rows, columns) and found["patches"].shape[1] == rows * columns
    if kind == "smallconv":
        assert torch.equal(found["patches"][:, 2 * columns + 3], last[:, 2, 3])
    with torch.no_grad():
        assert torch.equal(found["pooled"], pooled) and torch.equal(found["tokens"], backbone.tokens(images))
    assert torch.equal(found["patches"], found["tokens"])
    for i, one in enumerate(maps):
        mean = one.mean((1, 2)) if kind == "swin" else one.mean((2, 3))
        torch.testing.assert_close(found[f"stage{i}"], mean)


def test_one_forward_pass_gives_all() -> None:
    backbone = backbone_of(VITS["token"])
    taps, calls = Taps(backbone, available_taps(backbone)), list[int]()
    backbone.get_submodule("model.blocks.0").register_forward_hook(lambda *_: calls.append(1))
    taps(pictures(backbone))
    assert len(calls) == 1
    some = taps.only(["cls", "nothing"])
    assert list(some(pictures(backbone))) == ["cls"] and taps.names == available_taps(backbone)


@pytest.mark.parametrize("kind", ["token", "registers", "no-token"])
def test_patches_stand_for_places_row_by_row(kind: str) -> None:
    spec = VITS[kind]
    backbone = backbone_of(
        {**spec, "args": {key: value for key, value in spec["args"].items() if key != "img_size"}}, 24
    )
    image = torch.zeros(1, 3, 24, 24)
    image[:, :, 8:16, 16:] = 9.0  # row 1 of 3, column 2 of 3
    taps = Taps(backbone, ["patches"])
    change = (taps(image)["patches"] - taps(torch.zeros_like(image))["patches"]).abs().sum(2)[0]
    assert taps.grid == (3, 3) and int(change.argmax()) == 1 * 3 + 2


def test_bf16_weights_give_bf16_features_and_means_of_float32() -> None:
    backbone = backbone_of(VITS["token"])
    images, whole = pictures(backbone), Taps(backbone, ["mean", "cls", "block2"])(pictures(backbone))
    backbone.bfloat16()
    found = Taps(backbone, ["pooled", "mean", "cls", "block2"])(images)
    with torch.no_grad():
        assert torch.equal(found["pooled"], backbone.eval()(images.bfloat16()))
    assert found["mean"].dtype == found["block2"].dtype == torch.float32
    for name, rows in whole.items():
        torch.testing.assert_close(found[name].float(), rows, rtol=0.1, atol=0.1)


def test_autocast_is_left_alone() -> None:
    backbone = backbone_of(VITS["token"])
    images = pictures(backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = Taps(backbone, ["pooled", "mean"])(images)
        assert torch.equal(found["pooled"], backbone.eval()(images))


@pytest.mark.parametrize("name", ["pixels", "hog"])
def test_baselines_have_one_vector(name: str) -> None:
    backbone = create(16, own=BASELINES, name=name)
    assert available_taps(backbone) == ("pooled", "tokens")
    found = Taps(backbone, available_taps(backbone))(pictures(backbone))
    assert torch.equal(found["pooled"], found["tokens"][:, 0])


class Pair(nn.Module):
    """A network of several maps, and one whose intermediates are not its own, as timm has them."""

    num_features = 4

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.several, self.layer = several, nn.Conv2d(3, 4, 2, stride=2)

    def forward_features(self, images: Tensor) -> Any:
        found = self.layer(images)
        return [found, found] if self.several else found

    def forward_intermediates(self, images: Tensor, indices: list[int] | None = None) -> Any:
        if self.several:
            raise RuntimeError("not for me")
        return self.layer(images) + 1, [self.layer(images)]

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images).mean((2, 3)) * 2


@pytest.mark.parametrize(("several", "names"), [(True, ("pooled",)), (False, ("pooled", "tokens", "patches"))])
def test_what_a_network_cannot_tell_rightly_it_does_not_offer(several: bool, names: tuple[str, ...]) -> None:
    backbone = Backbone(Pair(several), {"name": "pair", "args": {}, "size": 8}, (0.5,), (0.5,))
    assert available_taps(backbone) == names
    images = pictures(backbone)
    assert torch.equal(Taps(backbone, names)(images)["pooled"], backbone(images))


@pytest.mark.parametrize("name", ["cls", "last4", "block0", "stage5", "", "token"])
def test_an_unknown_tap_names_key_network_and_list(name: str) -> None:
    backbone = backbone_of(MAPS["resnet"][0], 32)
    sentence = f"^evaluate.dense.tap: resnet10t has no features called '{name}'; choose from pooled, tokens, patches, stage0, .*stage4$"
    with pytest.raises(UserError, match=sentence):
        Taps(backbone, [name], key="evaluate.dense.tap")


def test_a_short_vit_has_no_last_four_blocks() -> None:
    backbone = backbone_of({"name": "vit_tiny_patch16_224", "args": {**PATCH, "depth": 3}})
    assert "last4" not in available_taps(backbone) and "block2" in available_taps(backbone)
    assert layout_of(backbone).levels == 3 and TapLayout().names() == ("pooled",)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_tiny_patch16_224", 8, "cuts pictures into patches of 16 px, so 8 px hold none; take 16 or more"),
        ("densenet121", 8, "cannot take 8 px .Given input size.*; take another size, most often a larger one"),
    ],
)
def test_a_size_that_a_network_cannot_take_is_refused(name: str, size: int, words: str) -> None:
    with pytest.raises(UserError, match=f"^data.size: {name} {words}$"):
        available_taps(create(size, name=name))
