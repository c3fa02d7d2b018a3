"""Single weights that are 0: which, and that they stay so; a training with masks is one of masked weights."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from rootstock.core.draws import Draws
from rootstock.core.method import Labelled
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.train.optim import Optim
from rootstock.finetune.compress.masks import WeightMasks
from rootstock.finetune.training.losses import CrossEntropy
from rootstock.finetune.training.objective import FineTune

ARGS = {"widths": [4, 4, 4, 8]}


def objective() -> FineTune:
    torch.manual_seed(0)
    model = create(16, name="smallconv", args=ARGS)
    return FineTune(Classifier(model, ["a", "b", "c"]), CrossEntropy(torch.ones(3), 0.0))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_smallest_weights_go(scope: Any) -> None:
    model = objective().backbone.model
    masks = WeightMasks(model, 0.6, scope)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim == 4}
    assert len(masks.names) == len(weights) == 4
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
    limit = flat.sort().values[round(0.6 * len(flat)) - 1]
    for (parameter, mask), weight in zip(masks.pairs(model), weights.values(), strict=True):
        assert torch.equal(parameter, weight)
        own = weight.abs().flatten().sort().values[round(0.6 * weight.numel()) - 1]
        assert torch.equal(mask.bool(), weight.abs() > (limit if scope == "global" else own))
    assert masks.total == len(flat) and masks.zeros == sum(int((mask == 0).sum()) for _, mask in masks.pairs(model))
    masks.apply_to(model)
    assert sum(int((p == 0).sum()) for p, _ in masks.pairs(model)) == masks.zeros


class Multiplied(nn.Module):
    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "sgd", "lr": 0.1, "weight_decay": 0.1, "momentum": 0.9},
    {"name": "adamw", "lr": 1e-2, "weight_decay": 0.3},
    {"name": "lars", "lr": 0.1, "weight_decay": 1e-2},
]


@pytest.mark.parametrize("options", OPTIMIZERS, ids=lambda options: options["name"])
def test_a_masked_training_is_one_of_masked_weights(options: dict[str, Any]) -> None:
    """Against a network whose layers multiply their weights by the mask, with clipped gradients, momentum and weight decay."""
    held, slow = objective(), objective()
    masks = WeightMasks(held.backbone.model, 0.7, "global")
    masks.apply_to(held.backbone.model)
    masks.hold(held.backbone.model)
    held.masks = masks
    for place, mask in zip(masks.names, (mask for _, mask in masks.pairs(held.backbone.model)), strict=True):
        layer: Any = slow.backbone.model.get_submodule(place.removesuffix(".weight"))
        with torch.no_grad():
            layer.weight.mul_(mask)
        parametrize.register_parametrization(layer, "weight", Multiplied(mask))
    settings = Optim(batch_size=6, duration="10", clip=0.5, **options)  # pyright: ignore[reportArgumentType]
    trained = [settings.build(method) for method in (held, slow)]
    assert len(list(held.parameters())) == len(list(slow.parameters()))
    for step in range(6):
        batch = Labelled(torch.randn(6, 3, 16, 16), torch.arange(6) % 3, Draws(0, torch.arange(6)))
        for method, optimizer in zip((held, slow), trained, strict=True):
            method(batch, step / 10).loss.backward()
            settings.clip_gradients([p for group in optimizer.param_groups for p in group["params"]])
            optimizer.step()
            optimizer.zero_grad()
            method.after_step(step / 10)
        for weight, mask in masks.pairs(held.backbone.model):
            assert bool((weight[mask == 0] == 0).all())
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(held.eval().classifier(images), slow.eval().classifier(images), rtol=1e-4, atol=1e-5)
    assert sum(int((p == 0).sum()) for p, _ in masks.pairs(held.backbone.model)) == masks.zeros


def test_checkpoints_hold_the_masks() -> None:
    method, again = objective(), objective()
    for one, share in ((method, 0.7), (again, 0.2)):
        one.masks = WeightMasks(one.backbone.model, share, "layer")
    again.load_state_dict(method.state_dict())
    pairs = zip(method.masks.pairs(method.backbone.model), again.masks.pairs(again.backbone.model), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
