"""Turns: three players in one method, beside three optimizers that know nothing of each other."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Domains, Labelled, Method, RawBatch, Step, Unlabelled
from rootstock.core.model import norm
from rootstock.core.run.directory import Interrupted, Run
from rootstock.core.train import fit as training
from rootstock.core.train.fit import Every, fit
from rootstock.core.train.fsdp import check_shardable
from rootstock.core.train.loop import Loop
from rootstock.core.train.optim import Optim, set_rate
from rootstock.core.train.seeds import step_seed
from rootstock.core.train.turns import in_turn, unreached
from rootstock.launch.doctor.trial_steps import backbone, distance, run_steps, share

BATCH, STEPS = 8, 20
# Who moves in each turn: all; both heads on features that pass no gradient on; the encoder, three times; the second head alone.
PLAYERS = (
    ("encoder", "first", "second"),
    ("first", "second"),
    ("encoder",),
    ("encoder",),
    ("encoder",),
    ("second",),
)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}
Open = Callable[..., Run]


class Three(Method):
    """An encoder with BatchNorm and two heads. bad: the (step, turn) whose loss is not a number."""

    rows_per_position, couples_samples, takes_chunk = 1, False, True
    turns = len(PLAYERS)

    def __init__(self, bad: tuple[int, int] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)
        self.bad = bad
        self.seen: list[tuple[int, int]] = []
        self.after: list[int] = []

    def forward(self, batch: Any, progress: float, turn: int = 0) -> Step:
        images = batch.images if hasattr(batch, "images") else batch
        features = self.encoder(images)
        one, two = (head(features if turn != 1 else features.detach()) for head in (self.first, self.second))
        fitted = (one - images[:, :3]).square().mean() + (two + images[:, 1:4]).square().mean()
        apart = (one - two).abs().mean()
        step = round(progress * STEPS)
        self.seen.append((step, turn))
        # The last turn leaves out the first head, the others hold all three players or all but the encoder.
        loss = (fitted, fitted - apart, apart, apart, apart, (two - 1.0).square().mean())[turn]
        return Step(loss * (float("nan") if (step, turn) == self.bad else 1.0), {"apart": apart.detach()})

    def frozen(self, progress: float, turn: int = 0) -> Iterator[nn.Parameter]:
        for name in ("encoder", "first", "second"):
            if name not in PLAYERS[turn]:
                yield from self.get_submodule(name).parameters()

    def after_step(self, progress: float) -> None:
        self.after.append(round(progress * STEPS))


def data(step: int) -> Tensor:
    return torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))


def batches(start: int) -> Iterator[list[RawBatch]]:
    for step in range(start, STEPS):
        yield [RawBatch(data(step), torch.arange(BATCH) + step * BATCH, torch.empty(0))]


def train(run: Run, method: Method, given: dict[str, Any], stop_at: int | None = None, **more: Any) -> Method:
    norm.convert_batch_norms(method, "local")

    def read(start: int) -> Iterator[list[RawBatch]]:
        for step, batch in enumerate(batches(start), start):
            if step == stop_at:
                raise KeyboardInterrupt
            yield batch

    optim = Optim(**{"batch_size": BATCH, "duration": STEPS, **given})
    fit(method, read, lambda raw: raw, steps=STEPS, steps_per_epoch=5, optim=optim, seed=0, run=run, **more)
    return method


def separately(
    given: dict[str, Any], bad: tuple[int, int] | None = None, clip: float | None = None
) -> dict[str, Tensor]:
    """The same with an optimizer for each player, of which only those in turn are called: no resting, no flags."""
    method = Three()
    norm.convert_batch_norms(method, "local")
    optim = Optim(**{"batch_size": BATCH, "duration": STEPS, **given})
    optimizers = {name: optim.build(method.get_submodule(name)) for name in ("encoder", "first", "second")}
    for step in range(STEPS):
        for optimizer in optimizers.values():
            set_rate(optimizer, optim.rate(step, STEPS, 5), optim.decay(step, STEPS))
        for turn, players in enumerate(PLAYERS):
            loss = method(RawBatch(data(step), torch.arange(BATCH), torch.empty(0)), step / STEPS, turn).loss
            if (step, turn) == bad:
                norm.commit(norm.layers(method), keep=False)
                break
            method.zero_grad()
            loss.backward()
            moving = [p for name in players for p in method.get_submodule(name).parameters()]
            if clip is not None:
                length = torch.cat([p.grad.flatten() for p in moving if p.grad is not None]).norm()
                for p in moving:
                    assert p.grad is not None
                    p.grad *= min(1.0, clip / (float(length) + 1e-6))
            for name in players:
                optimizers[name].step()
            norm.commit(norm.layers(method))
    return method.state_dict()


@pytest.fixture(params=["at once", "late"])
def judged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether an update is judged on the host, as on a CPU, or on the device and a step late, as on a GPU."""
    if request.param == "late":
        monkeypatch.setattr(training, "Loop", functools.partial(Loop, deferred=True))
    return request.param


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [None, (3, 0), (7, 2), (19, 5)])
def test_one_optimizer_is_three(name: str, bad: tuple[int, int] | None, judged: str, opened: Open) -> None:
    """To the last bit. A turn that is not finite skips itself and the rest of its step, and counts once."""
    run, method = opened(), Three(bad)
    train(run, method, OPTIMIZERS[name])
    for key, value in separately(OPTIMIZERS[name], bad).items():
        assert torch.equal(method.state_dict()[key], value), key
    row = json.loads((run.dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["skipped"] == (bad is not None)
    late_or_good = [step for step in range(STEPS) if judged == "late" or bad is None or step != bad[0]]
    assert method.after == late_or_good  # once a step


def test_resting_matters() -> None:
    """The reference is no tautology: players that move in every turn end elsewhere."""
    moved = Three()
    norm.convert_batch_norms(moved, "local")
    optim = Optim(**{"batch_size": BATCH, "duration": STEPS, **OPTIMIZERS["sgd"]})
    optimizer = optim.build(moved)
    for step in range(STEPS):
        set_rate(optimizer, optim.rate(step, STEPS, 5), optim.decay(step, STEPS))
        for turn in range(len(PLAYERS)):
            optimizer.zero_grad()
            moved(RawBatch(data(step), torch.arange(BATCH), torch.empty(0)), step / STEPS, turn).loss.backward()
            optimizer.step()
    right = separately(OPTIMIZERS["sgd"])
    assert not torch.allclose(moved.second.weight, right["second.weight"], atol=1e-2)


def test_only_the_gradients_of_the_turn_are_clipped(judged: str, opened: Open) -> None:
    """By SGD: AdamW hardly notices how long gradients are."""
    given = OPTIMIZERS["sgd"]
    method = train(opened(), Three(), {**given, "clip": 0.3})
    right = separately(given, clip=0.3)
    for key, value in right.items():
        torch.testing.assert_close(method.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(right["first.weight"], separately(given)["first.weight"], atol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_between_steps_to_the_same_bits(name: str, judged: str, opened: Open) -> None:
    straight = train(opened("straight"), Three(), OPTIMIZERS[name], every=Every(save=5))
    run = opened("cut")
    with pytest.raises(KeyboardInterrupt):
        train(run, Three(), OPTIMIZERS[name], stop_at=8, every=Every(save=5))
    resumed = Three()
    train(run, resumed, OPTIMIZERS[name], every=Every(save=5))
    assert min(resumed.seen) == (5, 0)
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_each_turns_numbers_are_logged(opened: Open) -> None:
    run, method = opened(), Three()
    train(run, method, OPTIMIZERS["sgd"], every=Every(log=1))
    found = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    assert len(found) == STEPS
    assert method.seen == [(step, turn) for step in range(STEPS) for turn in range(len(PLAYERS))]
    for row in found:
        named = {f"turn{turn}/{key}" for turn in range(6) for key in ("loss", "apart", "grad_norm")}
        assert {key for key in row if "/" in key} == named
        assert row["loss"] == row["turn0/loss"] and row["grad_norm"] == row["turn0/grad_norm"]
        assert row["turn2/loss"] == pytest.approx(row["turn2/apart"])


def test_a_row_of_turns_is_not_taken_for_an_evaluation(opened: Open) -> None:
    """Both have names with slashes. Stopped right before an evaluation, it is made up for."""
    scored: list[int] = []

    def evaluator(method: nn.Module) -> dict[str, float]:
        scored.append(1)
        return {"norm": float(method.get_parameter("first.weight").detach().norm())}

    run = opened()
    options: dict[str, Any] = {"evaluators": {"eval": evaluator}, "every": Every(log=1, evaluate=4, save=4)}

    class Stopping(Three):
        def after_step(self, progress: float) -> None:
            if round(progress * STEPS) == 2:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="saved at step 4"):
        train(run, Stopping(), OPTIMIZERS["sgd"], **options)
    assert not scored
    train(run, Three(), OPTIMIZERS["sgd"], **options)
    assert len(scored) == STEPS // 4


def test_a_turn_has_its_own_draws_and_seed_and_the_first_those_of_the_step() -> None:
    draws, at = Draws(3, torch.arange(4)).stream("target"), torch.zeros(4, 1)
    batch = Domains.of(Labelled(at, torch.arange(4), draws), Unlabelled(at, draws))
    assert in_turn(batch, 0) is batch
    first, second = (in_turn(batch, turn) for turn in (1, 2))
    assert type(first) is Domains and first.source.images is at and first.source.labels is batch.source.labels
    numbers = [found.target.draws.uniform("mask") for found in (batch, first, second)]
    assert len({tuple(number.tolist()) for number in numbers}) == 3
    assert torch.equal(numbers[2], draws.stream("turn2").uniform("mask"))
    assert in_turn((at, None), 1) == (at, None)
    assert step_seed(1, 0, 5) == step_seed(1, 0, 5, 0) != step_seed(1, 0, 5, 1) != step_seed(1, 0, 5, 2)


def test_parameters_that_a_loss_does_not_reach_are_found() -> None:
    method = Three()
    names = {parameter: name for name, parameter in method.named_parameters()}

    def missing(turn: int) -> set[str]:
        loss = method(data(0), 0.0, turn).loss
        return {names[parameter].partition(".")[0] for parameter in unreached(loss, method.parameters())}

    assert [missing(turn) for turn in range(6)] == [set(), {"encoder"}, set(), set(), set(), {"first"}]


def test_the_batch_is_neither_accumulated_nor_sharded(opened: Open) -> None:
    method: Any = Three()
    with pytest.raises(UserError, match=r"run\.accumulate: 2 .* 6 updates on each batch; use run\.chunk"):
        norm.configure(method, "local", accumulate=2, chunk=None, log=print)
    method.takes_chunk = False
    with pytest.raises(
        UserError, match=r"run\.accumulate: 2 .* 6 updates on each batch; use a smaller optim.batch_size"
    ):
        norm.configure(method, "local", accumulate=2, chunk=None, log=print)
    method.takes_chunk = True
    norm.configure(Three(), "local", accumulate=1, chunk=4, log=print)
    method.backbone = backbone("vit")
    with pytest.raises(UserError, match=r"run\.sharding: .* 6 updates on each batch; use run\.sharding=none"):
        check_shardable(method, opened())


def trial(dtype: torch.dtype) -> dict[str, Tensor]:
    """Two steps of six turns on this process's share of each batch."""
    method = Three().to(dtype)
    norm.convert_batch_norms(method, "batch")
    return run_steps(method, [share(data(step).to(dtype)) for step in range(2)])


def test_two_processes_with_absent_players_are_one(two_processes: Callable[[str], list[dict[str, Tensor]]]) -> None:
    """An encoder or a head that a turn's loss does not reach: no process waits for it, and it has no gradient."""
    right = trial(torch.float64)
    for found in two_processes(__file__):
        assert found.keys() == right.keys()
        ordered = {name: found[name] for name in right}
        for part in ("loss", "grad", "state"):
            assert distance(ordered, right, part) < 1e-10, part
    assert "grad.1.first.weight" in right and "grad.1.encoder.0.weight" not in right
    assert "grad.5.second.weight" in right and "grad.5.first.weight" not in right


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    save_file(trial(torch.float64), folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
