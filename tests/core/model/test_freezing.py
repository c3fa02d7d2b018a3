"""`backbone.freeze`: which layers keep their weights and statistics, whatever mode the method is put in."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.model import norm
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.ema import teacher_of
from rootstock.core.model.freezing import frozen_modules

RESNET: dict[str, Any] = {"name": "resnet10t", "args": {"channels": [4, 4, 4, 4], "layers": [1, 1, 1, 1]}}
VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "args": {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "proj_drop_rate": 0.5},
}
CONV: dict[str, Any] = {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}}
# Networks whose last norm or convolution no pattern of timm's stages names.
CONVNEXT: dict[str, Any] = {"name": "convnext_atto", "args": {"depths": [1, 1, 1, 1], "dims": [4, 4, 6, 8]}}
SWIN: dict[str, Any] = {
    "name": "swin_tiny_patch4_window7_224",
    "args": {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2},
}
FC_NORM: dict[str, Any] = {**VIT, "pooling": "fc_norm"}
MOBILENET: dict[str, Any] = {"name": "mobilenetv3_small_050"}


def trainable(backbone: Backbone) -> set[str]:
    """The first two parts of the names of parameters that are trained."""
    return {".".join(name.split(".")[:2]) for name, p in backbone.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("network", "up_to", "learns"),
    [
        (RESNET, "stem", {"layer1.0", "layer2.0", "layer3.0", "layer4.0"}),
        (RESNET, "stage2", {"layer3.0", "layer4.0"}),
        (RESNET, "stage4", set()),
        (RESNET, "all", set()),
        (VIT, "stem", {"blocks.0", "blocks.1", "blocks.2", "norm.weight", "norm.bias"}),
        (VIT, "stage2", {"blocks.2", "norm.weight", "norm.bias"}),
        (VIT, "stage3", set()),
        (CONV, "stem", {"blocks.1", "blocks.2", "blocks.3"}),
        (CONV, "stage2", {"blocks.3"}),
        (CONVNEXT, "stage3", {"stages.3", "head.norm"}),
        (CONVNEXT, "stage4", set()),
        (SWIN, "stage1", {"layers.1", "norm.weight", "norm.bias"}),
        (SWIN, "stage2", set()),
        (FC_NORM, "stage2", {"blocks.2", "fc_norm.weight", "fc_norm.bias"}),
        (FC_NORM, "stage3", set()),
        (MOBILENET, "stage5", {"blocks.5", "conv_head.weight", "conv_head.bias"}),
        (MOBILENET, "stage6", set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_up_to_the_stage_are_frozen(network: dict[str, Any], up_to: str, learns: set[str]) -> None:
    made = create(16, **network, freeze=up_to)
    assert trainable(made) == learns and made.frozen == (not learns)


@pytest.mark.parametrize(("network", "stages"), [(CONVNEXT, 4), (SWIN, 2), (FC_NORM, 3), (MOBILENET, 6)])
def test_what_follows_the_last_stage_is_none_itself(network: dict[str, Any], stages: int) -> None:
    with pytest.raises(UserError, match=rf"has stages 1 to {stages}, got stage{stages + 1}"):
        create(16, **network, freeze=f"stage{stages + 1}")


def test_an_efficientnets_last_convolution_belongs_to_its_last_stage() -> None:
    name = "efficientnet_lite0"
    made = create(32, name=name, freeze="stage6")
    assert trainable(made) == {"blocks.6", "conv_head.weight", "bn2.weight", "bn2.bias"}
    with pytest.raises(UserError, match=r"backbone\.freeze: efficientnet_lite0 has stages 1 to 7, got stage8"):
        create(32, name=name, freeze="stage8")


def test_frozen_layers_stay_in_eval_mode_and_the_others_do_not() -> None:
    made = create(16, **RESNET, freeze="stage2")
    norm.convert_batch_norms(made, "local")
    for mode in (made.train(), copy.deepcopy(made).train(), made.eval().train()):
        found = {name: module.training for name, module in mode.model.named_modules() if list(module.parameters(False))}
        assert {name.split(".")[0] for name, on in found.items() if on} == {"layer3", "layer4"}
    assert teacher_of(made).train().still[0].training is False


def test_a_frozen_dropout_is_off() -> None:
    made = create(16, **VIT, freeze="stage1").train()
    images = torch.randn(2, 3, 16, 16)
    blocks: Any = made.model
    embedded = blocks.patch_embed(images)
    assert torch.equal(blocks.blocks[0](embedded), blocks.blocks[0](embedded))
    assert not torch.equal(blocks.blocks[1](embedded), blocks.blocks[1](embedded))


@pytest.mark.parametrize("batchnorm", ["joint", "own"])
def test_training_moves_no_number_of_a_frozen_layer(batchnorm: Any) -> None:
    torch.manual_seed(0)
    made = Classifier(create(16, **CONV, freeze="stage1"), ["a", "b"], batchnorm=batchnorm)
    norm.convert_batch_norms(made, "local")
    made.train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    loss = F.cross_entropy(made.head(made.encode(torch.randn(2, 4, 3, 16, 16)))[0], torch.tensor([0, 1, 0, 1]))
    loss.backward()
    optimizer.step()
    norm.commit(norm.layers(made))
    moved = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in moved if name.startswith("backbone.model.blocks.2")} >= {
        "backbone.model.blocks.2.0.weight",
        "backbone.model.blocks.2.1.running_mean",
    }
    assert not any(name.startswith(("backbone.model.blocks.0", "backbone.model.blocks.1")) for name in moved)
    if batchnorm == "own":
        assert "backbone.model.blocks.2.1.of_source.running_mean" in moved


@pytest.mark.parametrize("word", ["stage0", "stage", "layer1", "head", ""])
def test_what_is_no_stage_is_one_sentence(word: str) -> None:
    with pytest.raises(UserError, match=r"backbone\.freeze: expected none, stem, stage1, stage2, \.\.\. or all, got"):
        create(16, **CONV, freeze=word)


def test_a_network_that_names_no_layers_is_frozen_whole_or_not_at_all() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert frozen_modules(Plain(), "none", "plain") == []
    assert len(frozen_modules(Plain(), "all", "plain")) == 1
    with pytest.raises(UserError, match=r"plain does not name its layers; use none or all"):
        frozen_modules(Plain(), "stem", "plain")


def test_a_frozen_network_exports_what_it_loaded(tmp_path: Path) -> None:
    create(16, **CONV).export(tmp_path)
    made = create(16, weights=str(tmp_path), freeze="all").train()
    made(torch.randn(4, 3, 16, 16))
    made.export(tmp_path / "again")
    first, second = ((tmp_path / k / "backbone" / "backbone.safetensors").read_bytes() for k in (".", "again"))
    assert first == second
