"""SynFlow against its definition without gradients: a saliency is what is lost when its parameter is zero, since R is linear in each."""

import pytest
import torch
from torch import nn

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create
from rootstock.launch.sweep.point import Untrained
from rootstock.launch.sweep.synflow import synflow_of


def point(network: nn.Module, size: int = 4, channels: int = 1) -> Untrained:
    return Untrained(network, channels, size, 0)


@torch.no_grad()
def slowly(network: nn.Module, size: int, channels: int) -> float:
    """The sum over parameters of R - R without that parameter, in float64, of a network of positive weights without norms."""

    def flow() -> float:
        return float(network(torch.ones(1, channels, size, size, dtype=torch.float64)).sum())

    whole, total = flow(), 0.0
    for parameter in network.parameters():
        flat = parameter.data.view(-1)
        for index in range(len(flat)):
            kept = flat[index].item()
            flat[index] = 0.0
            total += abs(whole - flow())
            flat[index] = kept
    return total


def drawn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2, stride=2), nn.GroupNorm(1, 2), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3),
    )  # fmt: skip


def test_it_is_the_sum_of_what_each_parameter_carries() -> None:
    network = drawn()
    linear = nn.Sequential(
        *(layer for layer in drawn() if isinstance(layer, nn.Conv2d | nn.Linear | nn.Flatten))
    ).double()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.abs_()
    assert synflow_of(point(network)) == pytest.approx(slowly(linear, 4, 1), rel=1e-9)


def test_of_layers_without_biases_it_is_their_number_times_the_flow() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False))
    first, second = (layer.weight.abs().double() for layer in network if isinstance(layer, nn.Linear))
    assert synflow_of(point(network)) == pytest.approx(2 * float((second @ first).detach().sum()), rel=1e-9)


def test_the_network_stays_as_it_is_and_statistics_do_not_count() -> None:
    network = drawn().train()
    before, state = synflow_of(point(network)), {k: v.clone() for k, v in network.state_dict().items()}
    assert network.training and all(p.grad is None for p in network.parameters())
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.full((3,), 7.0)
    assert synflow_of(point(network)) == before
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items() if k != "1.running_mean")


def test_a_layer_scale_that_begins_near_zero_hides_no_block() -> None:
    """timm's ConvNeXt begins with blocks scaled by 1e-6."""

    def score(scale: float) -> float:
        torch.manual_seed(0)
        args = {"depths": [1, 1, 1, 1], "dims": [4, 4, 4, 4], "ls_init_value": scale}
        return synflow_of(point(create(32, name="convnext_atto", args=args), 32, 3))

    assert score(1e-6) == score(1.0) > 0


def test_what_float64_cannot_hold_is_refused() -> None:
    network = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(4)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(3e38)
    deep = nn.Sequential(*(network for _ in range(3)))
    with pytest.raises(UserError, match=r"prefilter: synflow is beyond float64 .* take prefilter: \{name: steps\}"):
        synflow_of(point(deep))
