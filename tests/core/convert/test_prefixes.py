"""Networks below a prefix that no project uses are found, or the prefixes are named for --prefix."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from rootstock.core.convert.adopt import adopt
from rootstock.core.convert.file import Contents
from rootstock.core.errors import UserError
from rootstock.tests.core.convert import cases

CONVNEXT: dict[str, Any] = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}


def contents(*groups: tuple[str, dict[str, Tensor]], keys: list[str] | None = None) -> Contents:
    return Contents(Path("w.pth"), dict(groups), keys or [], None, "0" * 64)


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    return cases.resnet().state_dict()


@pytest.mark.parametrize(
    "prefix",
    ["model.", "encoder.", "net.", "student.", "module.model.", "model.encoder.backbone.", "feature_extractor.0."],
)
def test_a_network_below_any_prefix_is_found(prefix: str, resnet: dict[str, Tensor]) -> None:
    state = {**below(prefix, resnet), "head.projection.weight": torch.zeros(3, 3)}
    backbone, report = adopt(contents(("state_dict", state)))
    assert report["prefix"] == prefix.removeprefix("module.") and report["from"] == "torchvision"
    assert report["unused"] == ["state_dict/head.projection.weight"]
    expected = {key: tensor for key, tensor in resnet.items() if not key.startswith("fc.")}
    found = backbone.model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_vits_and_what_projects_expect_below_a_prefix() -> None:
    vit = below("model.", cases.vit_state())
    backbone, report = adopt(contents(("model", vit)), args=cases.VIT_ARGS)
    assert (report["from"], report["prefix"]) == ("mae", "model.") and backbone.spec["name"] == "vit_base_patch16_224"
    moco = below("model.encoder_q.", cases.resnet().state_dict())
    _, report = adopt(contents(("state_dict", moco)))
    assert report["prefix"] == "model.encoder_q."


def test_several_networks_are_named_and_chosen(resnet: dict[str, Tensor]) -> None:
    both = {**below("online.", resnet), **below("target_network.", {key: tensor + 1 for key, tensor in resnet.items()})}
    with pytest.raises(
        UserError, match=r"several networks \(under online\., target_network\.\); choose one with --prefix"
    ):
        adopt(contents(("", both)))
    for given in ("target_network", "target_network.", "module.target_network."):
        backbone, report = adopt(contents(("", both)), prefix=given)
        assert torch.equal(backbone.model.state_dict()["bn1.bias"], resnet["bn1.bias"] + 1)
        assert report["prefix"] == given and "online.bn1.bias" in report["unused"]
    with pytest.raises(
        UserError, match=r"--prefix: no tensor of w.pth begins with students; they begin with online., target_network."
    ):
        adopt(contents(("", both)), prefix="students")


def test_a_project_that_is_named_finds_its_own_prefix(resnet: dict[str, Tensor]) -> None:
    both = {**below("encoder.", resnet), **below("other.", resnet)}
    _, report = adopt(contents(("state_dict", both)), "solo")
    assert report["prefix"] == "encoder." and report["backbone"]["stem"] == "default"


def test_a_name_is_an_answer() -> None:
    """Other models of timm are recognised by --name alone, below a prefix or not."""
    torch.manual_seed(0)
    state = timm.create_model("convnext_atto", num_classes=0, **CONVNEXT).state_dict()
    for prefix in ("", "model."):
        found: Any = contents(("state_dict", below(prefix, state)))
        with pytest.raises(
            UserError, match=r"no known project; give --from .* --name with the timm model .* or --prefix"
        ):
            adopt(found)
        backbone, report = adopt(found, name="convnext_atto", args=CONVNEXT)
        assert (report["from"], report["recognised_by"], report["prefix"]) == ("timm", "--name", prefix)
        assert torch.equal(backbone.model.state_dict()["stem.0.weight"], state["stem.0.weight"])
    with pytest.raises(UserError, match=r"--name: 'convnext_attoo' is no timm model"):
        adopt(contents(("", state)), name="convnext_attoo")


@pytest.mark.parametrize("prefix", ["", "model.", "module.encoder."])
def test_namesakes_of_the_first_layer_are_no_networks(prefix: str, resnet: dict[str, Tensor]) -> None:
    """Each block of a ResNet has a conv1 too."""
    args: dict[str, Any] = {"layers": [1, 1, 1, 1]}
    for found in (contents(("", below(prefix, resnet))), contents(("state_dict", below(prefix, resnet)))):
        backbone, report = adopt(found, name="resnet18", args=args)
        assert report["prefix"] == prefix.removeprefix("module.")
        assert torch.equal(backbone.model.state_dict()["bn1.bias"], resnet["bn1.bias"])
    both = {**below("online.", resnet), **below("target.", resnet)}
    with pytest.raises(UserError, match=r"several networks \(under online\., target\.\)"):
        adopt(contents(("", both)), name="resnet18", args=args)


@pytest.mark.parametrize(
    ("width", "why"),
    [(16, r"16 channels in its stem \(as He et al\.'s for CIFAR"), (128, r"128 channels in its stem \(widened")],
)
def test_resnets_of_another_width(width: int, why: str) -> None:
    state = {"conv1.weight": torch.zeros(width, 3, 3, 3), "layer1.0.conv1.weight": torch.zeros(width, width, 3, 3)}
    with pytest.raises(UserError, match=why):
        adopt(contents(("", state)))
