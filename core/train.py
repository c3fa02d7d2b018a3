"""`fit`: the only training loop in the project.

Its only clock is the integer step; everything random in it is a function of (seed, step, position), so a checkpoint holds
weights, moments and numbers, and a resumed run repeats a straight one to the last bit.
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import checkpoint, norm
from .config import Duration
from .distributed import any_process, barrier, rank, world
from .errors import UserError
from .optim import Optim, set_rate
from .progress import Progress
from .run import Interrupted, Run
from .stream import Batches, Sample

NON_FINITE_LIMIT = 5


class Step(NamedTuple):
    """What a method returns for a batch."""

    loss: Tensor  # scalar, to be minimised
    metrics: dict[str, Tensor]  # scalars, detached; read only at log steps


Evaluator = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Every:
    """How often, in steps; 0 is never."""

    log: int = 10
    evaluate: int = 0
    save: int = 0

    @staticmethod
    def of(run: Run, steps: int, steps_per_epoch: int, evaluate: Any = None) -> Every:
        """Resolve the run's and the evaluators' durations."""

        def resolve(duration: Any) -> int:
            return max(1, Duration.parse(duration).steps(steps_per_epoch, steps))

        return Every(
            log=run.options["log_every"],
            evaluate=resolve(evaluate) if evaluate is not None else 0,
            save=resolve(run.options["checkpoint"]["every"]),
        )


def fit(
    method: nn.Module,
    batches: Batches,
    prepare: Callable[[Any], Any],
    *,
    steps: int,
    steps_per_epoch: int,
    optim: Optim,
    seed: int,
    run: Run,
    evaluators: Mapping[str, Evaluator] = {},
    every: Every = Every(),
) -> None:
    """Train `method` in place for `steps` optimizer steps, or for what is left of them after the newest checkpoint.

    method: forward(batch, progress) -> Step; optional after_step(progress). batches(step): this process's micro-batches of
    each step from `step` on. prepare: raw sample -> batch. evaluators: called at every.evaluate steps and at the end with the
    method in eval mode. Raises Interrupted after saving when asked to stop, UserError after repeated non-finite losses.
    """
    method.to(run.device)
    if run.options["channels_last"]:
        channels_last(method)
    optimizer = optim.build(method)
    names = {parameter: name for name, parameter in method.named_parameters()}
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    loop = _Loop(method, optimizer, names, scaler, optim, run, steps, steps_per_epoch, seed)
    start = loop.resume()
    wrapped = _wrap(method, run)
    with _stop_signals() as asked, Progress(run, steps, start) as progress:
        waiting = time.perf_counter()
        for step, micro in zip(range(start, steps), batches(start), strict=True):
            waited = time.perf_counter() - waiting
            row = loop.step(wrapped, micro, prepare, step, asked)
            done = step + 1
            progress.advance(done, sum(len(_positions(sample)) for sample in micro) * world(), waited)
            if done % every.log == 0 or done == steps:
                loop.log(done, row, progress)
            if evaluators and (done == steps or (every.evaluate and done % every.evaluate == 0)):
                evaluate(method, evaluators, done, done / steps_per_epoch, run)
            stop = loop.stop
            if stop or done == steps or (every.save and done % every.save == 0):
                loop.save(done)
            if stop and done < steps:
                raise Interrupted(f"interrupted; saved at step {done} of {steps} in {run.dir}; the same command resumes")
            waiting = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)


class _Loop:
    """One run's moving parts, so that `fit` reads as the loop that it is."""

    def __init__(
        self,
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: dict[Tensor, str],
        scaler: torch.amp.GradScaler,
        optim: Optim,
        run: Run,
        steps: int,
        steps_per_epoch: int,
        seed: int,
    ) -> None:
        self.method, self.optimizer, self.names, self.scaler, self.optim = method, optimizer, names, scaler, optim
        self.run, self.steps, self.steps_per_epoch, self.seed = run, steps, steps_per_epoch, seed
        self.non_finite = self.in_a_row = 0
        self.stop = False

    def step(self, wrapped: nn.Module, micro: list[Any], prepare: Callable[[Any], Any], step: int, asked: list[int]) -> dict[str, Any]:
        """Forward, backward and update of one global batch; returns the tensors to be logged."""
        # Covers what lives inside foreign modules (dropout, drop path): keyed by the step, not by the order of calls.
        torch.manual_seed(step_seed(self.seed, rank(), step))
        self.method.train()
        progress = step / self.steps
        rate = self.optim.rate(step, self.steps, self.steps_per_epoch)
        set_rate(self.optimizer, rate)
        share = 1.0 / len(micro)
        total: dict[str, Tensor] = {}
        for i, raw in enumerate(micro):
            last = i == len(micro) - 1
            with torch.no_grad():
                batch = prepare(raw)
            with nullcontext() if last else self.run.accelerator.no_sync(wrapped):
                with torch.autocast(self.run.device.type, self.run.dtype, enabled=self.run.dtype != torch.float32):
                    out: Step = wrapped(batch, progress)
                self.scaler.scale(out.loss * share).backward()
            for name, value in {"loss": out.loss.detach(), **out.metrics}.items():
                total[name] = total.get(name, 0.0) + value.detach() * share
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.optim.clip is not None:
            total["grad_norm"] = nn.utils.clip_grad_norm_(parameters, self.optim.clip)
        finite = self._agree(total["loss"], total.get("grad_norm"), asked, micro, step)
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        norm.commit(self.method, keep=finite)
        self.optimizer.zero_grad(set_to_none=True)
        if finite and hasattr(self.method, "after_step"):
            self.method.after_step(progress)  # pyright: ignore[reportCallIssue]
        return {**total, "lr": rate}

    def _agree(self, loss: Tensor, grad_norm: Tensor | None, asked: list[int], micro: list[Any], step: int) -> bool:
        """Whether the step counts, decided by all processes together; also whether any of them was asked to stop."""
        bad = ~loss.isfinite()
        if grad_norm is not None and not self.scaler.is_enabled():
            bad = bad | ~grad_norm.isfinite()
        flags = any_process(torch.stack([bad, torch.tensor(bool(asked), device=bad.device)]))
        non_finite, self.stop = flags.tolist()
        self.in_a_row = self.in_a_row + 1 if non_finite else 0
        if non_finite:
            self.non_finite += 1
            positions = torch.cat([_positions(sample) for sample in micro])
            self.run.log(
                f"WARNING: non-finite loss or gradient at step {step + 1}, skipped on all processes "
                f"(positions {int(positions.min())}..{int(positions.max())} here)"
            )
            if self.in_a_row >= NON_FINITE_LIMIT:
                raise UserError(
                    f"{self.in_a_row} non-finite steps in a row up to step {step + 1}; the last checkpoint is whole; "
                    "lower optim.lr, set optim.clip, or use run.precision=fp32"
                )
        return not non_finite

    def log(self, done: int, row: dict[str, Any], progress: Progress) -> None:
        values = {name: float(value) for name, value in row.items()}
        if world() > 1:
            mean = self.run.accelerator.reduce(torch.tensor(list(values.values()), device=self.run.device), "mean")
            values = dict(zip(values, mean.tolist(), strict=True))
        rates = progress.rates()
        self.run.metrics({"step": done, "epoch": done / self.steps_per_epoch, **values, **rates, "skipped": self.non_finite})
        progress.show(done, values, rates)

    def save(self, done: int) -> None:
        """Rank 0 writes; everyone waits, so that nobody runs ahead of a checkpoint that may fail."""
        if self.run.main:
            groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            state = {"groups": groups, "scaler": self.scaler.state_dict(), "non_finite": self.non_finite, "seed": self.seed}
            checkpoint.save(
                self.run.checkpoints,
                checkpoint.Checkpoint(
                    done, self.method.state_dict(), checkpoint.optimizer_tensors(self.optimizer, self.names), state
                ),
                self.run.options["checkpoint"]["keep"],
            )
        barrier()

    def resume(self) -> int:
        """Load the newest whole checkpoint; returns its step, 0 without one."""
        saved = checkpoint.latest(self.run.checkpoints, self.run.log)
        if saved is None:
            self.run.cut_metrics(0)
            return 0
        own = self.method.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in saved.model.items()}:
            odd = sorted(own.keys() ^ saved.model.keys()) or [k for k, v in own.items() if v.shape != saved.model[k].shape]
            raise UserError(f"{self.run.checkpoints} is of another architecture ({', '.join(odd[:3])}); choose another run.dir")
        self.method.load_state_dict(saved.model)
        checkpoint.restore_optimizer(self.optimizer, self.names, saved.optimizer)
        self.scaler.load_state_dict(saved.state["scaler"])
        self.non_finite = saved.state["non_finite"]
        self.run.cut_metrics(saved.step)
        self.run.log(f"resumed from step {saved.step} of {self.steps}")
        barrier()
        return saved.step


def evaluate(method: nn.Module, evaluators: Mapping[str, Evaluator], step: int, epoch: float, run: Run) -> None:
    """Run the evaluators in eval mode and write their numbers as one row."""
    method.eval()
    values = {f"{name}/{key}": value for name, evaluator in evaluators.items() for key, value in evaluator(method).items()}
    run.metrics({"step": step, "epoch": epoch, **values})
    run.log("  ".join([f"step {step}", *(f"{key} {value:.4f}" for key, value in values.items())]))


def step_seed(seed: int, process: int, step: int) -> int:
    """A 63-bit seed for torch's own generator."""
    digest = hashlib.sha256(f"{seed}/{process}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def channels_last(method: nn.Module) -> None:
    """Convolution weights in channels_last memory format, where the model has convolutions."""
    if any(isinstance(m, nn.Conv2d) and m.kernel_size != m.stride for m in method.modules()):
        method.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _wrap(method: nn.Module, run: Run) -> nn.Module:
    wrapped: nn.Module = run.accelerator.prepare_model(method) if world() > 1 else method
    mode = run.options["compile"]
    return torch.compile(wrapped) if mode == "on" or (mode == "auto" and run.device.type == "cuda") else wrapped  # pyright: ignore[reportReturnType]


def _positions(sample: Any) -> Tensor:
    return sample.positions if isinstance(sample, Sample) else sample.source.positions


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM ask once; a second Ctrl-C leaves at once (checkpoints are atomic, so nothing is lost)."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever runs us there keeps the signals
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
