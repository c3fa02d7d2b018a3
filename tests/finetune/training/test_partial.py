"""`method.trained`: what rests keeps its bits through updates, BatchNorm statistics included, and what is trained moves."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Labelled
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.classifier import Classifier
from rootstock.finetune.training.losses import CrossEntropy
from rootstock.finetune.training.objective import FineTune
from rootstock.finetune.training.partial import check_trained, train_part

SIDE = 32
VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "args": {"patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 2, "drop_path_rate": 0.5},
}
RESNET: dict[str, Any] = {
    "name": "resnet10t",
    "args": {"channels": [4, 4, 8, 8], "stem_width": 4, "zero_init_last": False},
}
# Of the last four no pattern of timm's stages names what follows them.
NETWORKS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "resnet": RESNET,
    "fc_norm": {**VIT, "pooling": "fc_norm"},
    "convnext": {"name": "convnext_atto", "args": {"depths": [1, 1, 1, 1], "dims": [4, 4, 6, 8], "ls_init_value": 1.0}},
    "swin": {
        "name": "swin_tiny_patch4_window7_224",
        "args": {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2},
    },
    "mobilenet": {"name": "mobilenetv3_small_050"},
}
SECTION: dict[str, Any] = {"freeze": "none", "lora": None}
# What may move, by how its name begins or ends.
MOVING = {
    ("resnet", "last:1"): ("layer4.",),
    ("resnet", "last:3"): ("layer2.", "layer3.", "layer4."),
    ("vit", "last:1"): ("blocks.2.", "norm."),
    ("vit", "last:3"): ("blocks.", "norm."),
    ("fc_norm", "last:1"): ("blocks.2.", "fc_norm."),
    ("convnext", "last:1"): ("stages.3.", "head.norm."),
    ("convnext", "last:3"): ("stages.1.", "stages.2.", "stages.3.", "head.norm."),
    ("swin", "last:1"): ("layers.1.", "norm."),
    ("swin", "last:2"): ("layers.", "norm."),
    ("mobilenet", "last:1"): ("blocks.5.", "conv_head."),
    ("resnet", "head"): (),
    ("vit", "head"): (),
}


def backbone_of(net: str) -> Backbone:
    torch.manual_seed(0)
    return create(SIDE, **NETWORKS[net])


def moved_by(model: Backbone, steps: int = 2) -> set[str]:
    """Which tensors of a network two updates of all that has a gradient change, running statistics included."""
    objective = FineTune(Classifier(model, ["a", "b"]), CrossEntropy(torch.ones(2), 0.0)).train()
    before: dict[str, Tensor] = {name: value.clone() for name, value in model.model.state_dict().items()}
    draws = Draws(0, torch.arange(8))
    for step in range(steps):
        images = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(step))
        objective(Labelled(images, torch.arange(8) % 2, draws), 0.0).loss.backward()
        with torch.no_grad():
            for parameter in objective.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    assert all(parameter.grad is not None for parameter in objective.classifier.head.parameters())
    return {name for name, value in model.model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(("net", "trained"), MOVING)
def test_only_the_last_stages_move(net: str, trained: str) -> None:
    model, begins = backbone_of(net), MOVING[net, trained]
    train_part(model, trained)
    names = {name for name in model.model.state_dict() if name.startswith(begins)} if begins else set[str]()
    assert moved_by(model) == names
    # A block that rests neither drops paths nor uses its batch's statistics.
    modules = [m for name, m in model.model.named_modules() if name and not f"{name}.".startswith(begins or ("-",))]
    resting = [
        part
        for m in modules
        if list(m.parameters()) and not any(p.requires_grad for p in m.parameters())
        for part in m.modules()
    ]
    assert len(resting) >= 4 and not any(part.training for part in resting)


@pytest.mark.parametrize("net", ["vit", "resnet"])
def test_biases_alone_move(net: str) -> None:
    model = backbone_of(net)
    train_part(model, "biases")
    moved = moved_by(model)
    biases = {name for name, _ in model.model.named_parameters() if name.endswith("bias")}
    # A bias of keys shifts all scores of a row alike, so its gradient is rounding alone; all others move.
    assert moved <= biases and len(biases) >= 6
    assert moved == biases or net == "vit"
    assert model.train().model.training  # paths are still dropped in a ViT whose matrices rest


def test_all_is_left_alone() -> None:
    model = backbone_of("resnet")
    train_part(model, "all")
    assert moved_by(model) >= {name for name, _ in model.model.named_parameters()}


def test_what_cannot_be() -> None:
    for wrong in ("last", "last:0", "last:-1", "first:2", "bias"):
        with pytest.raises(UserError, match=r"method\.trained: expected all, biases, head or last:N"):
            check_trained(wrong, False, SECTION)
    for net, stages in (("resnet", 4), ("fc_norm", 3), ("convnext", 4), ("swin", 2), ("mobilenet", 6)):
        with pytest.raises(
            UserError, match=rf"method\.trained: \w+ has {stages} stages or blocks, got last:{stages + 1}"
        ):
            train_part(backbone_of(net), f"last:{stages + 1}")
    for freeze, section, other in (
        (True, SECTION, "method.freeze"),
        (False, {**SECTION, "freeze": "stage1"}, "backbone.freeze"),
        (False, {**SECTION, "lora": {}}, "backbone.lora"),
    ):
        with pytest.raises(UserError, match=rf"method\.trained: biases is given, and {other} says too"):
            check_trained("biases", freeze, section)
        check_trained("all", freeze, section)
