"""Tiny networks for the tests of pruning."""

from typing import Any

import torch
from torch import nn

from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.finetune.compress.channels import coupled_channels
from rootstock.finetune.compress.importance import by_magnitude, layers_to_score
from rootstock.finetune.compress.kept import Kept, kept_channels
from rootstock.finetune.compress.widths import Ranking, Scope

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4}
RESNET = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
CNNS: list[tuple[str, int, dict[str, Any]]] = [
    ("resnet10t", 32, {"args": RESNET}),
    ("resnet10t", 16, {"stem": "small", "args": RESNET}),
    ("mobilenetv3_small_050", 32, {}),
    ("tf_efficientnet_lite0", 32, {}),
    ("smallconv", 16, {}),
    ("lenet", 32, {}),
    ("cifar_resnet", 16, {"args": {"depth": 8}}),
    ("vgg11", 32, {"args": {"mlp_ratio": 0.01}}),
]
TOKENS: list[tuple[str, int, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", 16, {"pooling": "token", "args": VIT}),
    ("vit_tiny_patch16_224", 16, {"pooling": "mean", "args": {**VIT, "qk_norm": True}}),
    ("convnext_atto", 32, {"args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}),
    ("swin_tiny_patch4_window7_224", 32, {"args": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}}),
]  # fmt: skip


def named(case: tuple[str, int, dict[str, Any]]) -> str:
    return "-".join([case[0], *map(str, (v for k, v in case[2].items() if k != "args"))])


def classifier_of(name: str, size: int, options: dict[str, Any], classes: int = 3) -> Classifier:
    """A network whose weights and statistics are not the initial ones."""
    torch.manual_seed(0)
    made = Classifier(create(size, name=name, **options), [f"class {number}" for number in range(classes)])
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0)):
                    assert tensor is not None
                    tensor.uniform_(low, high)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
    return made.eval()


def chosen(classifier: Classifier, share: float, scope: Scope = "layer", multiple: int = 1) -> Kept:
    """The channels that stay at so many levels of all, by magnitude."""
    groups = coupled_channels(classifier.backbone, features=True)
    ranking = Ranking(groups, by_magnitude(layers_to_score(classifier), groups), scope, 0.1, multiple)
    return kept_channels(groups, ranking.kept(ranking.counts(round(share * ranking.levels))))
