"""Averages step by step against timm's ModelEmaV3 and a mean over all states, and what is refused about them."""

import copy
from typing import Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.model.heads import HeadInit, initialise_head
from rootstock.finetune.training.averages import ExponentialAverage, averaging_of, interpolated
from rootstock.finetune.training.evaluation import Judged, slice_options
from rootstock.finetune.training.regime import check_regime
from rootstock.launch.verbs import fill_defaults

STEPS = 12


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()


@torch.no_grad()
def moved(net: nn.Module, step: int) -> None:
    """As a step of training: other weights, other statistics."""
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator))
    net(torch.randn(8, 3, generator=generator))


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_ema_is_timms(warmup: bool, buffers: str) -> None:
    net = network()
    options = {"decay": 0.7, "warmup": warmup, "buffers": buffers}
    ours = ExponentialAverage(net, STEPS, options)
    timms = ModelEmaV3(net, decay=0.7, use_warmup=warmup, exclude_buffers=buffers == "copy")
    for step in range(STEPS):
        moved(net, step)
        ours.update(net, step / STEPS)
        timms.update(net, step=step + 1)
        for (name, mine), theirs in zip(
            ours.network.state_dict().items(), timms.module.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(mine, theirs, msg=lambda text, n=name: f"{n}: {text}")
    assert not any(parameter.requires_grad for parameter in ours.network.parameters())


def test_how_much_of_the_first_step_is_left() -> None:
    net = network()
    for options in ({"decay": 0.7, "warmup": False}, {"decay": 0.9, "warmup": True}):
        average = ExponentialAverage(net, STEPS, {**options, "buffers": "copy"})
        for parameter in net.parameters():
            nn.init.ones_(parameter)
        for step in range(STEPS):
            average.update(net, step / STEPS)
            for parameter in net.parameters():
                nn.init.zeros_(parameter)
        left = {float(value) for parameter in average.network.parameters() for value in parameter.flatten()}
        assert list(left) == pytest.approx([average.left()], rel=1e-5)


def method(**given: Any) -> dict[str, Any]:
    config = {
        "data": {"train": "a", "size": 8}, "backbone": {"name": "smallconv"}, "optim": {"lr": 1, "batch_size": 2, "duration": 3},
        "method": given, "run": {"dir": "runs/a"},
    }  # fmt: skip
    return fill_defaults("finetune", config)["method"]


@pytest.mark.parametrize(
    ("start", "every", "steps"), [("50%", 2, (6, 8, 10, 12)), (4, "1ep", (4, 7, 10)), (12, 1, (12,))]
)
def test_swa_is_the_mean_of_some_states(start: Any, every: Any, steps: tuple[int, ...]) -> None:
    net = network()
    average = averaging_of(method(swa={"start": start, "every": every}), net, STEPS, 3)
    assert average is not None and average.recomputes
    states: list[dict[str, Tensor]] = []
    for step in range(STEPS):
        moved(net, step)
        average.update(net, step / STEPS)
        states.append(copy.deepcopy(net.state_dict()))
    for name, parameter in average.network.named_parameters():
        expected = torch.stack([states[done - 1][name] for done in steps]).mean(0)
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(
    "late", [True, False], ids=["device", "host"]
)  # the device asks for each update, the host for made ones
@pytest.mark.parametrize("skips", [(1,), (4,), (1, 2, 7), (4, 7), tuple(range(1, STEPS + 1))])
@pytest.mark.parametrize("keys", [{"ema": {"decay": 0.7}}, {"swa": {"start": 4, "every": 3}}], ids=["ema", "swa"])
def test_the_average_is_of_the_states_that_came_in(keys: dict[str, Any], skips: tuple[int, ...], late: bool) -> None:
    net = network()
    average = averaging_of(method(**keys), net, STEPS, 3)
    assert average is not None
    began = [parameter.detach().clone() for parameter in average.network.parameters()]
    came: list[list[Tensor]] = []
    for step in range(STEPS):
        moved(net, step)
        bad = step + 1 in skips
        if late or not bad:
            average.update(net, step / STEPS, torch.tensor(bad) if late else None)
        if not bad and ("ema" in keys or step + 1 in (4, 7, 10)):
            came.append([parameter.detach().clone() for parameter in net.parameters()])
    assert average.state_dict()["entries"] == len(came)
    for i, parameter in enumerate(average.network.parameters()):
        states = [state[i] for state in came] or [began[i]]
        expected = torch.stack(states).mean(0)
        if "ema" in keys:
            expected = states[0]
            for state in states[1:]:
                expected = 0.7 * expected + 0.3 * state
        torch.testing.assert_close(parameter.detach(), expected)


def test_between_start_and_end() -> None:
    start, end = (
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([5.0, 0.0]), "n": torch.tensor(9)},
    )
    for alpha, weights in ((0.0, [1.0, 2.0]), (0.25, [2.0, 1.5]), (1.0, [5.0, 0.0])):
        found = interpolated(start, end, alpha)
        assert found["w"].tolist() == weights and found["n"] == 9


def test_better_is_strictly_better() -> None:
    first, equal, other = Judged(1, 0.5, 2.0), Judged(2, 0.5, 1.0), Judged(3, 0.6, 3.0)
    assert not equal.better(first, "accuracy") and equal.better(first, "loss")
    assert other.better(first, "accuracy") and not other.better(first, "loss")


@pytest.mark.parametrize(
    ("how", "spread"),
    [("truncated_normal", 0.01), ("xavier", (2 / (300 + 200)) ** 0.5), ("kaiming", (2 / 300) ** 0.5), ("zeros", 0.0)],
)
def test_heads_are_drawn_by_name(how: HeadInit, spread: float) -> None:
    torch.manual_seed(0)
    head = nn.Linear(300, 200)
    initialise_head(head, how, 0.01)
    weight = head.weight.detach()
    assert float(weight.std()) == pytest.approx(spread, rel=0.02) and abs(float(weight.mean())) <= 0.01 * spread
    assert not head.bias.detach().any()
    if how == "xavier":
        assert float(weight.abs().max()) == pytest.approx((6 / 500) ** 0.5, rel=1e-3)


def test_a_head_is_left_as_torch_makes_it() -> None:
    head = nn.Linear(3, 2)
    before = copy.deepcopy(head.state_dict())
    initialise_head(head, "torch", 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "evaluate", "said"),
    [
        ({"wise_ft": 0.5}, {}, "method.wise_ft: the head of the start has to be a trained one"),
        ({"wise_ft": 1.5, "linear_first": True}, {}, "method.wise_ft: expected alpha, from 0"),
        ({"linear_first": True, "keep_head": True}, {}, "method.linear_first: .*leave method.keep_head out"),
        ({"linear_first": True, "head_init": "zeros"}, {}, "method.linear_first: .*leave method.head_init out"),
        ({"swa": {}}, {"held_out": 0.1, "every": 5, "keep": "best"}, "evaluate.keep: method.swa averages to the end"),
        ({}, {"held_out": 0.6}, "evaluate.held_out: expected a number from 0 to 0.5, got 0.6"),
        ({}, {"every": 5}, "evaluate.every: 5 needs images that training does not see; give evaluate.held_out"),
        ({}, {"held_out": 0.1, "keep": "best"}, "evaluate.keep: best needs evaluations during training; give evaluate.every"),
        ({}, {"held_out": 0.1, "every": 5, "early_stopping": 0}, "evaluate.early_stopping: expected a number"),
    ],
)  # fmt: skip
def test_contradictions_are_one_sentence(keys: dict[str, Any], evaluate: dict[str, Any], said: str) -> None:
    given = {"held_out": 0.0, "every": None, "keep": "last", "by": "accuracy", "early_stopping": None, **evaluate}
    assert given.keys() == (slice_options.__kwdefaults__ or {}).keys()
    with pytest.raises(UserError, match=f"^{said}"):
        check_regime(method(**keys), {"lora": None}, given)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ema": {}, "swa": {}}, "method.swa: method.ema averages the weights already"),
        ({"ema": {"decay": 1.0}}, "method.ema.decay: expected 0 or more and less than 1, got 1.0"),
        ({"swa": {"start": 13}}, "method.swa.start: expected a step up to 12, the last one, got 13"),
        ({"swa": {"every": 0}}, "method.swa.every: expected 1 step or more, got 0"),
    ],
)
def test_averages_that_cannot_be_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        averaging_of(method(**keys), network(), STEPS, 3)
