"""`fit` on a small regression whose every number can be followed by hand."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.method import Method, RawBatch, Step
from rootstock.core.model.norm import convert_batch_norms
from rootstock.core.run.directory import Interrupted, Run
from rootstock.core.train import loop, progress
from rootstock.core.train.fit import Every, fit
from rootstock.core.train.loop import Loop
from rootstock.core.train.optim import Optim

N, BATCH, STEPS = 40, 8, 12


class Regression(Method):
    """Least squares with a BatchNorm to keep, a moving average after each step, and holes to fall into.

    bad: step -> what becomes of the loss in it.
    """

    def __init__(self, bad: Mapping[int, Callable[[Tensor], Tensor]] = {}) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3)
        self.bad = bad
        self.average = nn.Buffer(torch.zeros(5))
        self.after: list[float] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, batch: RawBatch, progress: float) -> Step:
        out = self.layer(batch.images)
        self.dtypes.add(out.dtype)
        loss = (out.float() - batch.images.sum(1, keepdim=True)).square().mean()
        step = round(progress * STEPS)
        return Step(self.bad[step](loss) if step in self.bad else loss, {"mean": out.mean()})

    def after_step(self, progress: float) -> None:
        self.after.append(progress)
        self.average.lerp_(self.layer.weight.detach().mean(0), 0.1)


def data() -> Tensor:
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(0))


def batches(
    micro: int = 1, stop_at: int | None = None, number: int = signal.SIGTERM
) -> Callable[[int], Iterator[list[RawBatch]]]:
    def read(start: int) -> Iterator[list[RawBatch]]:
        for step in range(start, STEPS):
            if step == stop_at:
                os.kill(os.getpid(), number)
            rows = (torch.arange(BATCH) + step * BATCH) % N
            yield [RawBatch(data()[r], r + 0, torch.empty(0)) for r in rows.chunk(micro)]

    return read


def optim(**given: Any) -> Optim:
    return Optim(**{"name": "sgd", "lr": 0.1, "batch_size": BATCH, "duration": STEPS, **given})


def train(run: Run, method: Method, *, micro: int = 1, stop_at: int | None = None, number: int = signal.SIGTERM,
          given: Mapping[str, Any] = {}, **more: Any) -> Method:  # fmt: skip
    fit(
        method, batches(micro, stop_at, number), lambda raw: raw, steps=STEPS, steps_per_epoch=5, optim=optim(**given), seed=0,
        run=run, **more,
    )  # fmt: skip
    return method


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]


def by_hand(steps: Iterator[int] | range = range(STEPS), clip: float | None = None) -> Tensor:
    """The same training in plain torch: the weights at the end."""
    model = Regression()
    velocity: dict[str, Tensor] = {}
    for step in steps:
        x = data()[(torch.arange(BATCH) + step * BATCH) % N]
        loss = (model.layer(x) - x.sum(1, keepdim=True)).square().mean()
        names, parameters = zip(*model.layer.named_parameters(), strict=True)
        grads = torch.autograd.grad(loss, parameters)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        factor = 1.0 if clip is None or norm <= clip else clip / (norm + 1e-6)
        rate = 0.1 * (1 + math.cos(math.pi * step / STEPS)) / 2
        with torch.no_grad():
            for name, p, g in zip(names, parameters, grads, strict=True):
                velocity[name] = 0.9 * velocity[name] + factor * g if name in velocity else factor * g
                p -= rate * velocity[name]
    return model.layer.weight.detach()


def close(method: Method, expected: Tensor) -> None:
    torch.testing.assert_close(method.get_parameter("layer.weight").detach(), expected, rtol=1e-5, atol=1e-6)


def test_it_is_plain_training(opened: Callable[..., Run]) -> None:
    method = Regression()
    close(train(opened(), method), by_hand())
    assert method.after == [step / STEPS for step in range(STEPS)]


@pytest.mark.parametrize("micro", [2, 4])
def test_accumulation_is_the_whole_batch(micro: int, opened: Callable[..., Run]) -> None:
    whole, cut = opened("whole"), opened("cut")
    train(whole, Regression(), every=Every(log=1))
    close(train(cut, Regression(), micro=micro, every=Every(log=1)), by_hand())
    for key in ("loss", "mean", "grad_norm"):
        assert [row[key] for row in rows(cut)] == pytest.approx([row[key] for row in rows(whole)], rel=1e-4), key


def test_clipping(opened: Callable[..., Run]) -> None:
    close(train(opened(), Regression(), given={"clip": 0.5}), by_hand(clip=0.5))
    assert not torch.allclose(by_hand(clip=0.5), by_hand())


def nan(loss: Tensor) -> Tensor:
    return loss * float("nan")


def bad_gradient(loss: Tensor) -> Tensor:
    """A finite loss, an infinite gradient."""
    return loss + (loss - loss.detach()).sqrt()


@pytest.mark.parametrize("spoil", [nan, bad_gradient])
@pytest.mark.parametrize("micro", [1, 2])
def test_a_non_finite_step_is_skipped_and_named(
    spoil: Callable[[Tensor], Tensor], micro: int, opened: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run, method = opened(), Regression({3: spoil, 7: spoil})
    train(run, method, micro=micro, every=Every(log=1))
    good = [step for step in range(STEPS) if step not in (3, 7)]
    close(method, by_hand(iter(good)))
    assert method.after == [step / STEPS for step in good]
    said = capsys.readouterr().err.splitlines()
    assert [line.split("at ")[1].split(",")[0] for line in said] == ["step 4", "step 8"]
    assert all("WARNING" in line and "skipped" in line for line in said)
    if spoil is bad_gradient and micro == 1:
        assert "positions 24..31" in said[0]
    assert [row["skipped"] for row in rows(run)] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]


def test_a_skipped_step_leaves_no_trace_in_batchnorm(opened: Callable[..., Run]) -> None:
    class Normalised(Regression):
        def __init__(self, **holes: Any) -> None:
            super().__init__(**holes)
            self.norm = nn.BatchNorm1d(5)
            convert_batch_norms(self, "local")

        def forward(self, batch: RawBatch, progress: float) -> Step:
            return super().forward(batch._replace(images=self.norm(batch.images)), progress)

    method = Normalised(bad={3: nan})
    train(opened(), method)
    slow = nn.BatchNorm1d(5)
    for step in (step for step in range(STEPS) if step != 3):
        slow(data()[(torch.arange(BATCH) + step * BATCH) % N])
    for key, value in slow.named_buffers():
        torch.testing.assert_close(method.norm.get_buffer(key), value)


def test_the_micro_batch_of_a_non_finite_loss_is_named(
    opened: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(raw: RawBatch) -> RawBatch:
        return raw._replace(images=raw.images.log()) if 28 in raw.positions else raw

    fit(Regression(), batches(2), prepare, steps=STEPS, steps_per_epoch=5, optim=optim(), seed=0, run=opened())
    first, second = capsys.readouterr().err.splitlines()  # the data come round again after five steps
    assert "at step 4" in first and "at step 9" in second
    assert "(positions 28..31)" in first and "(positions 28..31)" in second


def test_several_in_a_row_end_the_run_and_leave_the_checkpoint(opened: Callable[..., Run]) -> None:
    run = opened()
    with pytest.raises(UserError, match=r"5 non-finite steps in a row up to step 9; .*optim\.lr"):
        train(run, Regression(dict.fromkeys(range(4, STEPS), nan)), every=Every(save=4))
    assert sorted(os.listdir(run.checkpoints)) == ["step-00000004", "step-00000008"]
    saved = Regression()
    train(run, saved, every=Every(save=4))
    # The skipped steps 5 to 8 were counted before the checkpoint of step 8.
    close(saved, by_hand(iter([0, 1, 2, 3, 8, 9, 10, 11])))


def test_evaluators_run_on_schedule_in_eval_mode(opened: Callable[..., Run]) -> None:
    run, modes = opened(), []

    def evaluator(method: nn.Module) -> dict[str, float]:
        modes.append(method.training)
        torch.rand(3)  # must not touch the training's randomness
        return {"norm": float(method.get_parameter("layer.weight").detach().norm())}

    method = train(run, Regression(), evaluators={"eval": evaluator}, every=Every(log=0, evaluate=5))
    close(method, by_hand())
    found = [row for row in rows(run) if "eval/norm" in row]
    assert [row["step"] for row in found] == [5, 10, 12] and [row["epoch"] for row in found] == [1.0, 2.0, 2.4]
    assert modes == [False] * 3
    assert found[-1]["eval/norm"] == pytest.approx(float(method.get_parameter("layer.weight").detach().norm()))


def test_rows(opened: Callable[..., Run]) -> None:
    run = opened()
    train(run, Regression(), every=Every(log=5))
    found = rows(run)
    assert [row["step"] for row in found] == [5, 10, 12]
    assert {"step", "epoch", "loss", "lr", "images_per_s", "data_wait", "mean", "grad_norm", "skipped"} == found[
        0
    ].keys()
    assert [row["lr"] for row in found] == pytest.approx(
        [0.1 * (1 + math.cos(math.pi * s / STEPS)) / 2 for s in (4, 9, 11)]
    )
    assert all(row["images_per_s"] > 0 and 0 <= row["data_wait"] <= 1 for row in found)


def test_asked_to_stop_where_it_would_evaluate_it_saves_and_evaluates_later(opened: Callable[..., Run]) -> None:
    """Whoever asks may not wait for an evaluation. It is made up for, once, before training goes on."""
    calls: list[int] = []

    def evaluator(method: nn.Module) -> dict[str, float]:
        calls.append(1)
        return {"norm": float(method.get_parameter("layer.weight").detach().norm())}

    options: dict[str, Any] = {"evaluators": {"eval": evaluator}, "every": Every(log=1, evaluate=4, save=4)}
    straight = opened("straight")
    train(straight, Regression(), **options)
    del calls[:]
    cut = opened("cut")
    with pytest.raises(Interrupted, match="saved at step 4"):
        train(cut, Regression(), stop_at=3, **options)
    assert not calls
    train(cut, Regression(), **options)
    train(cut, Regression(), **options)  # all is there
    assert len(calls) == 3
    clocks = {"images_per_s", "data_wait"}
    told = [[{k: v for k, v in row.items() if k not in clocks} for row in rows(run)] for run in (straight, cut)]
    assert told[0] == told[1]


class Late(Regression):
    """Its weight does not learn in the first half."""

    def frozen(self, progress: float) -> list[nn.Parameter]:
        return [*self.layer.parameters()][:1] if progress < 0.5 else []


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_what_is_frozen_begins_afresh_when_it_thaws(name: str, opened: Callable[..., Run]) -> None:
    """Nothing moves it before, not even weight decay; then its moments start as in the first step; resumed, to the same bits."""
    given = {"name": name, "lr": 0.01, "weight_decay": 0.1, "schedule": "constant"}
    method, start = Late(), Regression()
    train(opened("straight"), method, given=given)
    reference = optim(**given).build(start)
    for step in range(STEPS):
        x = data()[(torch.arange(BATCH) + step * BATCH) % N]
        reference.zero_grad()
        start(RawBatch(x, torch.arange(BATCH), torch.empty(0)), step / STEPS).loss.backward()
        if step < STEPS // 2:
            assert torch.equal(start.layer.weight, Regression().layer.weight)
            start.layer.weight.grad = None
        reference.step()
    torch.testing.assert_close(method.layer.weight, start.layer.weight, rtol=1e-5, atol=1e-6)
    assert not torch.equal(method.layer.weight, Regression().layer.weight)
    for stop in (4, 8):
        cut = opened(f"cut{stop}")
        with pytest.raises(Interrupted):
            train(cut, Late(), given=given, stop_at=stop)
        cut.close()
        train(opened(f"cut{stop}"), resumed := Late(), given=given)
        for key, value in method.state_dict().items():
            assert torch.equal(resumed.state_dict()[key], value), key


def test_of_several_processes_the_longest_wait_for_data_is_told(
    opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for that one in the next collective, so the first one's own says nothing. The second process is made up."""
    monkeypatch.setattr(loop, "all_reduce_sum", lambda mine: mine + torch.tensor([3.0, 0.0, 0.9]))
    monkeypatch.setattr(progress, "world", lambda: 2)
    run, said = opened(), list[str]()
    monkeypatch.setattr(run, "log", said.append)
    first: Any = SimpleNamespace(run=run, rank=0, world=2, steps_per_epoch=5, skipped=SimpleNamespace(total=0))
    with progress.Progress(run, STEPS, 0) as shown:
        Loop.log(first, STEPS, {"loss": torch.tensor(1.0), "lr": 0.1}, shown)
    (row,) = rows(run)
    assert row["loss"] == 2.0 and row["data_wait"] == pytest.approx(0.9)
    assert "data wait 90% (rank 1)" in said[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_resumes(number: int, opened: Callable[..., Run]) -> None:
    run, handlers = opened(), (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    every = Every(log=1, save=5)
    with pytest.raises(Interrupted, match=r"saved at step 8 of 12 in .*the same command resumes"):
        train(run, Regression(), stop_at=7, number=number, every=every)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    # Rows of a life after the checkpoint, and half a line of a killed one, are cut.
    with open(run.dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 9, "loss": 1.0}) + '\n{"step": 10, "lo')
    method = Regression()
    train(run, method, every=every)
    assert method.after == [step / STEPS for step in range(8, STEPS)]
    straight = train(opened("straight"), Regression(), every=every)
    assert all(
        torch.equal(a, b) for a, b in zip(method.state_dict().values(), straight.state_dict().values(), strict=True)
    )
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))


def test_a_finished_training_does_nothing_more(opened: Callable[..., Run]) -> None:
    run = opened()
    first = train(run, Regression(), every=Every(save=5))
    again = Regression()
    train(run, again, every=Every(save=5))
    assert again.after == [] and torch.equal(again.layer.weight, first.get_parameter("layer.weight"))


def test_no_steps_at_all(opened: Callable[..., Run]) -> None:
    method = Regression()
    fit(method, lambda _: iter([]), lambda raw: raw, steps=0, steps_per_epoch=5, optim=optim(), seed=0, run=opened())
    assert torch.equal(method.layer.weight, Regression().layer.weight)


def test_a_checkpoint_of_another_architecture_is_refused(opened: Callable[..., Run]) -> None:
    run = opened()
    train(run, Regression())
    other = Regression()
    other.layer = nn.Linear(5, 4)
    with pytest.raises(
        UserError, match=r"another architecture \(layer\.weight, layer\.bias\); choose another run\.dir"
    ):
        train(run, other)


def test_half_precision_needs_a_gpu(opened: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"run\.precision: fp16 needs a GPU; use fp32 or bf16"):
        train(opened(precision="fp16", device="cpu"), Regression())


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(opened: Callable[..., Run]) -> None:
    method = Regression()
    train(opened(precision="bf16"), method)
    assert method.dtypes == {torch.bfloat16} and method.layer.weight.dtype == torch.float32
    assert (method.layer.weight.detach() - by_hand()).abs().max() < 0.02


def test_rows_reach_the_tracker(opened: Callable[..., Run]) -> None:
    run = opened(tracker="tensorboard")
    train(run, Regression(), every=Every(log=5))
    run.close()
    events = list((run.dir / "tensorboard").glob("events.*"))
    assert len(events) == 1 and b"images_per_s" in events[0].read_bytes()


def test_what_the_alarm_says_is_warned_of_and_kept(
    opened: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[tuple[int, float]] = []

    def alarm(step: int, row: Mapping[str, float]) -> str | None:
        heard.append((step, row["loss"]))
        return "too good to be true" if step == 8 else None

    run = opened()
    train(run, Regression(), every=Every(log=4), alarm=alarm)
    logged = [row for row in rows(run) if "loss" in row]
    assert heard == [(row["step"], row["loss"]) for row in logged] and [step for step, _ in heard] == [4, 8, 12]
    assert [(row["step"], row["warning"]) for row in rows(run) if "warning" in row] == [(8, "too good to be true")]
    assert "WARNING: too good to be true" in capsys.readouterr().err
