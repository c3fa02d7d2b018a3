"""Heads trained together against each alone in a plain loop of torch's own layers, losses and optimizers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.evaluate import sgd_heads
from rootstock.core.evaluate.sgd_heads import FittedHeads, Head, HeadTraining, in_memory, train_heads
from rootstock.core.stream.order import straddling

N, CLASSES = 90, 4
WIDTHS = {"cls": 12, "cls+mean": 24}
HEADS = [Head("cls", 0.03), Head("cls+mean", 0.1, 0.01), Head("cls", 0.3, 0.1), Head("cls+mean", 0.01)]
SEED = 3


def features(seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (N,), generator=generator)
    centres = torch.randn(CLASSES, 24, generator=torch.Generator().manual_seed(9))
    x = 2 + centres[y] + torch.randn(N, 24, generator=generator)
    return {"cls": x[:, :12].contiguous(), "cls+mean": x}, y


class LARS(torch.optim.Optimizer):
    """MAE's (He et al. 2022, util/lars.py), written from its description: no decay and no trust for vectors."""

    def __init__(self, params: Iterable[dict], lr: float, momentum: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                way = p.grad
                if p.ndim > 1:
                    way = way + group["weight_decay"] * p
                    if float(p.norm()) > 0 and float(way.norm()) > 0:
                        way = way * (0.001 * float(p.norm()) / float(way.norm()))
                state = self.state[p]
                state["mu"] = group["momentum"] * state.get("mu", torch.zeros_like(p)) + way
                p -= group["lr"] * state["mu"]


OPTIMIZERS: dict[str, Callable[[list[dict], HeadTraining], torch.optim.Optimizer]] = {
    "sgd": lambda groups, training: torch.optim.SGD(groups, lr=1.0, momentum=training.momentum),
    "nesterov": lambda groups, training: torch.optim.SGD(groups, lr=1.0, momentum=training.momentum, nesterov=True),
    "lars": lambda groups, training: LARS(groups, lr=1.0, momentum=training.momentum),
    "adamw": lambda groups, _: torch.optim.AdamW(groups, lr=1.0),
    "adamw-0.95": lambda groups, _: torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95)),
}


def alone(x: Tensor, y: Tensor, head: Head, training: HeadTraining) -> nn.Sequential:
    """One head by torch's own parts."""
    width = x.shape[1]
    layer = nn.Linear(width, CLASSES)
    norm = nn.BatchNorm1d(width, eps=1e-6, affine=False) if training.normalise else nn.Identity()
    draws = Draws(SEED, torch.zeros(1, dtype=torch.int64), "heads/")
    with torch.no_grad():
        layer.weight.copy_(training.init_std * draws.normal(f"weight/{head.tap}", CLASSES, width)[0])
        layer.bias.zero_()
    groups = [
        {"params": [layer.weight], "weight_decay": head.weight_decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    optimizer, size = OPTIMIZERS[training.optimizer](groups, training), training.batch_size
    order = straddling(SEED, "heads", N, size, training.steps) if size else [torch.arange(N)] * training.steps
    for step, rows in enumerate(order):
        warm, rest = training.warmup_steps, training.steps - training.warmup_steps
        rate = step / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / rest)) / 2
        for group in optimizer.param_groups:
            group["lr"] = head.lr * rate
        optimizer.zero_grad()
        cross_entropy(layer(norm(x[rows])), y[rows]).backward()
        optimizer.step()
    return nn.Sequential(norm, layer).eval()


def trained(heads: list[Head], training: HeadTraining) -> FittedHeads:
    x, y = features()
    return train_heads(in_memory(x), y, CLASSES, heads, training, seed=SEED)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("batch_size", [32, None])
def test_heads_together_end_as_each_alone(optimizer: str, normalise: bool, batch_size: int | None) -> None:
    training = HeadTraining(
        steps=25, batch_size=batch_size, optimizer=optimizer, warmup_steps=4, init_std=0.05, normalise=normalise
    )
    found, (x, y), (test, labels) = trained(HEADS, training), features(), features(1)
    logits = found.logits(test)
    right, losses = found.scores(test, labels)
    for i, head in enumerate(HEADS):
        model = alone(x[head.tap], y, head, training)
        layer = model[1]
        assert isinstance(layer, nn.Linear)
        torch.testing.assert_close(found.weight[i], layer.weight.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.bias[i], layer.bias.detach(), rtol=1e-5, atol=1e-5)
        expected = model(test[head.tap]).detach()
        torch.testing.assert_close(logits[i], expected, rtol=1e-4, atol=1e-4)
        assert int(right[i]) == int((logits[i].argmax(1) == labels).sum())
        assert float(losses[i]) == pytest.approx(float(cross_entropy(expected, labels)), rel=1e-4)
    assert not any(found.diverged)


def test_a_head_depends_on_no_other_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training = HeadTraining(steps=10, batch_size=40)
    together = trained(HEADS, training)
    (single,) = trained(HEADS[2:3], training).weight
    torch.testing.assert_close(together.weight[2], single)
    monkeypatch.setattr(sgd_heads, "LOGITS", 1)
    monkeypatch.setattr(sgd_heads, "LEAST_ROWS", 7)
    test, labels = features(1)
    blocks = trained(HEADS, training)
    for own, other in zip(together.weight, blocks.weight, strict=True):
        torch.testing.assert_close(own, other)
    right, losses = blocks.scores(test, labels)
    assert right.tolist() == (blocks.logits(test).argmax(2) == labels).sum(1).tolist() and len(losses) == len(HEADS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_head_that_diverges_is_left_out_and_reported(optimizer: str) -> None:
    """One loss overflows; the others of its input end as without it."""
    heads = [Head("cls", 1e38, 1.0), *HEADS]
    training = HeadTraining(steps=12, batch_size=32, optimizer=optimizer)
    found, without = trained(heads, training), trained(HEADS, training)
    assert found.diverged == (True, False, False, False, False)
    assert math.isinf(found.losses[0]) and not found.weight[0].any() and not found.bias[0].any()
    for own, other in zip(found.weight[1:], without.weight, strict=True):
        torch.testing.assert_close(own, other)
    right, losses = found.scores(*features(1))
    assert int(right[0]) == -1 and math.isinf(float(losses[0])) and bool(losses[1:].isfinite().all())


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov"])
def test_a_head_that_diverges_in_the_last_step_is_reported(optimizer: str) -> None:
    """The loss of a step is that before it."""
    heads = [Head("cls", 3e38, 1e30), *HEADS]
    found = trained(heads, HeadTraining(steps=1, batch_size=32, optimizer=optimizer, init_std=1e3))
    assert found.diverged[0] and not any(found.diverged[1:])
    assert not found.weight[0].any() and math.isinf(found.losses[0]) and int(found.scores(*features(1))[0][0]) == -1


def test_augmented_epochs_come_through_the_batch() -> None:
    """The caller picks the cached epoch of a step; both epochs are read, and the weights differ from those of one epoch."""
    (x, y), (other, _) = features(), features(2)
    seen = []

    def batch(step: int, rows: Tensor | slice) -> dict[str, Tensor]:
        seen.append(step * 30 // N)
        return {tap: (x, other)[seen[-1] % 2][tap][rows] for tap in x}

    training = HeadTraining(steps=6, batch_size=30)
    found = train_heads(batch, y, CLASSES, HEADS, training, seed=SEED)
    assert seen == [0, 0, 0, 1, 1, 1]
    assert not torch.equal(found.weight[0], trained(HEADS, training).weight[0])


def test_schedule() -> None:
    rates = [HeadTraining(steps=10, warmup_steps=2).rate(step) for step in range(10)]
    assert (
        rates[:3] == [0.0, 0.5, 1.0] and rates[6] == pytest.approx(0.5) and sorted(rates[2:], reverse=True) == rates[2:]
    )
    assert HeadTraining(steps=4).rate(0) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "expected one of sgd, nesterov, lars, adamw"),
        ({"steps": 0}, "expected 1 or more"),
        ({"batch_size": 0}, "expected 1 or more"),
        ({"warmup_steps": 5}, "fewer than the 5 steps"),
        ({"momentum": 1.0}, "below 1"),
        ({"init_std": math.nan}, "init_std: nan is given; expected 0 to 1000"),
    ],
)
def test_numbers_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(HeadTraining(steps=5), **options)


def test_bad_input_is_named() -> None:
    x, y = features()
    training = HeadTraining(steps=2, batch_size=8)

    def train(x: dict[str, Tensor], y: Tensor, heads: list[Head], training: HeadTraining = training) -> None:
        train_heads(in_memory(x), y, CLASSES, heads, training, seed=0)

    for head in (Head("cls", 0.0), Head("cls", math.inf), Head("cls", 0.1, -1.0), Head("cls", 0.1, math.nan)):
        with pytest.raises(UserError, match="finite lr above 0"):
            train(x, y, [head])
    with pytest.raises(UserError, match="one or more candidates"):
        train(x, y, [])
    for labels in (y[:0], y + 1, y - 1):
        with pytest.raises(UserError, match=r"classes 0\.\.3"):
            train(x, labels, HEADS)
    with pytest.raises(UserError, match="not finite"):
        train({tap: value * math.nan for tap, value in x.items()}, y, HEADS)
    with pytest.raises(UserError, match="two images or more"):
        train(x, y, HEADS, HeadTraining(steps=1, batch_size=1, normalise=True))
    with pytest.raises(ValueError, match="no features of pooled"):
        train(x, y, [Head("pooled", 0.1)])
