"""What a GPU run does instead of waiting: the update is skipped by a flag on the device, and the host hears of it a step late."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rootstock.core.errors import UserError
from rootstock.core.method import Method, RawBatch, Step
from rootstock.core.model.norm import convert_batch_norms
from rootstock.core.numerics import approach
from rootstock.core.run.directory import Interrupted, Run
from rootstock.core.train import fit as train
from rootstock.core.train.fit import Every, fit
from rootstock.core.train.loop import Loop
from rootstock.core.train.optim import Optim
from rootstock.core.train.seeds import seed_generators

BATCH, STEPS = 8, 12
OPTIMIZERS = [
    {"name": "adamw", "weight_decay": 0.1},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "sgd", "momentum": 0.0, "clip": 0.5},
    {"name": "lars", "momentum": 0.9, "weight_decay": 0.1},
]
Open = Callable[..., Run]


class Regression(Method):
    """Two layers around a BatchNorm. bad: the steps whose loss, and with it every gradient, is not a number."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        self.bad = bad
        convert_batch_norms(self, "local")

    def forward(self, batch: RawBatch, progress: float) -> Step:
        loss = (self.layers(batch.images) - batch.images[:, :3]).square().mean()
        return Step(loss * (float("nan") if round(progress * STEPS) in self.bad else 1.0), {})


def batches(stop_at: int | None = None) -> Callable[[int], Iterator[list[RawBatch]]]:
    data = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))

    def read(start: int) -> Iterator[list[RawBatch]]:
        for step in range(start, STEPS):
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            rows = (torch.arange(BATCH) + step * BATCH) % len(data)
            yield [RawBatch(data[half], half, torch.empty(0)) for half in rows.chunk(2)]

    return read


def trained(run: Run, bad: tuple[int, ...] = (), stop_at: int | None = None, **given: Any) -> Regression:
    method = Regression(bad)
    optim = Optim(**{"name": "sgd", "lr": 0.1, "batch_size": BATCH, "duration": STEPS, **given})
    fit(method, batches(stop_at), lambda raw: raw, steps=STEPS, steps_per_epoch=5, optim=optim, seed=0, run=run,
        every=Every(log=STEPS))  # fmt: skip
    return method


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the runs after it decide as they would on a GPU."""
    return lambda: monkeypatch.setattr(train, "Loop", functools.partial(Loop, deferred=True))


@pytest.mark.parametrize("given", OPTIMIZERS, ids=lambda given: f"{given['name']}-{given.get('momentum')}")
@pytest.mark.parametrize("bad", [(), (0, 3, 4, 11), (5,)])
def test_skipped_on_the_device_is_skipped(
    opened: Open, late: Callable[[], None], given: dict[str, Any], bad: tuple[int, ...]
) -> None:
    """Weights and running statistics to the last bit, and the same count."""
    lines = []
    weights: list[dict[str, Tensor]] = []
    for name in ("at_once", "late"):
        if name == "late":
            late()
        run = opened(name)
        weights.append(trained(run, bad, **given).state_dict())
        lines.append((run.dir / "metrics.jsonl").read_text().rpartition('"skipped": ')[2])
    assert lines[0] == lines[1] == f"{len(bad)}}}\n"
    assert all(value.isfinite().all() for value in weights[0].values())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


class Follows(Regression):
    """After each step its weights move back to those that it began with. seen: (step, what `skipped` was)."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        super().__init__(bad)
        self.began = [p.detach().clone() for p in self.parameters()]
        self.seen: list[tuple[int, bool | None]] = []

    def after_step(self, progress: float) -> None:
        self.seen.append((round(progress * STEPS), None if self.skipped is None else bool(self.skipped)))
        with torch.no_grad():
            for parameter, first in zip(self.parameters(), self.began, strict=True):
                approach(parameter, first, 0.25, self.skipped)


def test_after_step_is_called_each_step_and_knows_what_became_of_it(opened: Open, late: Callable[[], None]) -> None:
    """The host does not know yet whether the update was skipped; the device does, and weights are then what they were."""
    weights = []
    for name in ("at_once", "late"):
        if name == "late":
            late()
        method = Follows((3, 4, 8))
        optim = Optim(name="sgd", lr=0.1, batch_size=BATCH, duration=STEPS)  # pyright: ignore[reportArgumentType]
        fit(method, batches(), lambda raw: raw, steps=STEPS, steps_per_epoch=5, optim=optim, seed=0, run=opened(name))
        right: list[tuple[int, bool | None]] = [(step, step in method.bad) for step in range(STEPS)]
        assert method.seen == (right if name == "late" else [(step, None) for step, bad in right if not bad])
        assert method.skipped is None
        weights.append(method.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_checkpoint_knows_of_the_last_step_that_was_skipped(opened: Open, late: Callable[[], None]) -> None:
    """Saved right after a bad step, with nothing logged in between."""
    late()
    run, method = opened(), Regression((5,))
    optim = Optim(name="sgd", lr=0.1, batch_size=BATCH, duration=STEPS)  # pyright: ignore[reportArgumentType]
    fit(method, batches(), lambda raw: raw, steps=STEPS, steps_per_epoch=5, optim=optim, seed=0, run=run,
        every=Every(log=0, save=6))  # fmt: skip
    saved = json.loads((run.checkpoints / "step-00000006" / "state.json").read_text())
    assert saved["non_finite"] == saved["in_a_row"] == 1


def test_asked_to_stop_it_saves_a_step_later_and_resumes_exactly(opened: Open, late: Callable[[], None]) -> None:
    straight = trained(opened("straight"), name="adamw")
    late()
    run = opened("stopped")
    with pytest.raises(Interrupted, match=r"saved at step 6 of 12"):
        trained(run, stop_at=4, name="adamw")
    run.close()
    resumed = trained(opened("stopped"), name="adamw")
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_it_gives_up_after_bad_steps_in_a_row(opened: Open, late: Callable[[], None]) -> None:
    late()
    with pytest.raises(UserError, match="5 non-finite steps in a row up to step 7"):
        trained(opened(), tuple(range(2, 12)))


class Waits(TorchFunctionMode):
    """Counts what would wait for a GPU: reading a tensor's value, or a shape that depends on one."""

    NAMES = ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in self.NAMES:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given", OPTIMIZERS, ids=lambda given: f"{given['name']}-{given.get('momentum')}")
def test_a_step_reads_one_thing_and_that_of_the_step_before(opened: Open, given: dict[str, Any]) -> None:
    method = Regression()
    optim = Optim(**{"lr": 0.1, "batch_size": BATCH, "duration": STEPS, **given})
    loop = Loop(method, optim.build(method), optim, opened(), STEPS, 5, 0, deferred=True)
    for step, micro in enumerate(batches()(0)):
        with Waits() as waits:
            loop.step(method, micro, lambda raw: raw, step, [])
        assert waits.seen == ([] if step == 0 else ["tolist"]), f"step {step}"
    assert loop.pending is not None and loop.pending.step == STEPS - 1
    loop.flush()
    assert loop.pending is None


def test_the_generators_are_seeded_as_torch_does() -> None:
    torch.manual_seed(7)
    expected = torch.rand(5)
    seed_generators(7, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)
