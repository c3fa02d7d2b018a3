"""One step of `fit`: forward, backward, update, the processes' agreement on it, logged rows and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import phase
from ..distributed import all_reduce_sum, any_process, rank, sharded_like, unsharded, world
from ..errors import UserError
from ..method import Method
from ..model import norm
from ..run.compare import check_origin, science
from ..run.directory import Run
from . import checkpoint
from .nonfinite import DeferredFlags, flag_on, start_momentum, step_unless
from .optim import Optim, set_rate
from .progress import Progress
from .saving import Saving
from .seeds import seed_generators, step_seed

NON_FINITE_LIMIT = 5  # skipped steps in a row that end a training
Alarm = Callable[[int, Mapping[str, float]], str | None]  # (step, logged row) -> a warning, or None


@dataclass
class Loop:
    """The state of a training: method, optimizer and counters.

    On a GPU nothing waits for the device between log steps. A non-finite update is skipped on the device, and the host learns of it,
    and of a request to stop, one step later. deferred: whether to do so; by default on a GPU, except in fp16 or if sharded.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    optim: Optim
    run: Run
    steps: int
    steps_per_epoch: int
    seed: int
    non_finite: int = 0
    in_a_row: int = 0
    stop: bool = False  # some process was asked to stop, and all processes know it
    due: bool = False  # a checkpoint is due by rank 0's clock, and all processes know it
    deferred: bool | None = None
    sharded: bool = False  # whether the parameters of `method` are sharded

    def __post_init__(self) -> None:
        self.rank, self.world = rank(), world()  # looked up once: a call takes torch microseconds
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in self.method.named_parameters()}
        self.scaler = torch.amp.GradScaler(self.run.device.type, enabled=self.run.dtype == torch.float16)
        if self.deferred is None:  # fp16's scaler itself skips steps with non-finite gradients
            self.deferred = self.run.device.type == "cuda" and not self.scaler.is_enabled() and not self.sharded
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.constant = any(group["constant"] for group in self.optimizer.param_groups)
        self.layers = norm.layers(self.method)  # looked up once: a walk over the modules costs more than a small step
        self.unsynced: Callable[[], AbstractContextManager[Any]] = nullcontext  # see core/train/parallel.py
        self.pending: DeferredFlags | None = None
        self.saving = Saving(self.run)
        if self.deferred:
            start_momentum(self.optimizer)

    def step(
        self, wrapped: Callable[..., Any], micro: list[Any], prepare: Callable[[Any], Any], step: int, asked: list[int]
    ) -> dict[str, Any]:
        """Forward, backward and update of one global batch; returns the values to be logged."""
        # For random layers of timm's and torch's (dropout, drop path): they depend on the step, not on the order of calls.
        seed_generators(step_seed(self.seed, self.rank, step), self.run.device)
        progress = step / self.steps
        rate = self.optim.rate(step, self.steps, self.steps_per_epoch)
        constant = self.optim.rate(step, self.steps, self.steps_per_epoch, constant=True) if self.constant else None
        set_rate(self.optimizer, rate, self.optim.decay(step, self.steps), constant)
        total, losses = self.backward(wrapped, micro, prepare, progress)
        for parameter in self.method.frozen(progress):
            # None, not zeros: with zeros the optimizer would decay the weights and count a step in Adam's bias correction.
            parameter.grad = None
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        grad_norm = self.optim.clip_gradients(self.parameters)
        total["grad_norm"] = grad_norm
        positions = [raw_batches(raw)[0].positions for raw in micro]
        if self.deferred:
            self._update_deferred(losses, grad_norm, asked, positions, step, progress)
        else:
            self._update(losses, grad_norm, asked, positions, step, progress)
        for (
            parameter
        ) in self.parameters:  # as optimizer.zero_grad does, which takes a tenth of the time of a small step
            parameter.grad = None
        return {**total, "lr": rate}

    def backward(
        self, wrapped: Callable[..., Any], micro: list[Any], prepare: Callable[[Any], Any], progress: float
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Accumulate the gradients of all micro-batches; returns the means of loss and metrics, and each micro-batch's loss."""
        share = 1.0 / len(micro)
        total: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        half = self.run.dtype != torch.float32
        for i, raw in enumerate(micro):
            last = i == len(micro) - 1
            with torch.no_grad():
                batch = prepare(raw)
            with nullcontext() if last else self.unsynced():
                with torch.autocast(self.run.device.type, self.run.dtype) if half else nullcontext():
                    out: Any = wrapped(batch, progress)
                loss = out.loss if share == 1.0 else out.loss * share
                (self.scaler.scale(loss) if self.scaler.is_enabled() else loss).backward()
            if not last:
                norm.set_aside(self.layers)
            losses.append(out.loss.detach())
            phase.note_progress(i + 1, len(micro))
            for name, value in {"loss": losses[-1], **out.metrics}.items():
                part = value.detach() if share == 1.0 else value.detach() * share
                total[name] = total[name] + part if name in total else part
        return total, losses

    def _update(
        self,
        losses: list[Tensor],
        grad_norm: Tensor,
        asked: list[int],
        positions: list[Tensor],
        step: int,
        progress: float,
    ) -> None:
        """Update the weights unless some process has a non-finite loss or gradient; learn whether any was asked to stop."""
        # Each number is needed on the host here anyway, where Python's isfinite is faster than torch's.
        bad = not all(math.isfinite(loss.item()) for loss in losses)
        if not self.scaler.is_enabled():  # the scaler checks gradients itself, and lowers its scale
            bad = bad or not math.isfinite(grad_norm.item())
        self.stop, self.due = bool(asked), self.saving.due()
        if self.world > 1:
            flags = torch.tensor([bad, self.stop, self.due], device=grad_norm.device)
            bad, self.stop, self.due = any_process(flags).tolist()
        if not bad:
            self.scaler.step(self.optimizer) if self.scaler.is_enabled() else self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        norm.commit(self.layers, keep=not bad)
        if not bad:
            self.method.after_step(progress)
        self._count(bad, losses, positions, step)

    def _update_deferred(
        self,
        losses: list[Tensor],
        grad_norm: Tensor,
        asked: list[int],
        positions: list[Tensor],
        step: int,
        progress: float,
    ) -> None:
        """As `_update`, without waiting for the device: it skips a bad update, and the host learns of it after the next step.

        A skipped step leaves weights, moments and running statistics unchanged. `after_step` is called all the same: an EMA teacher
        then moves once more towards unchanged weights.
        """
        bad = ~(torch.stack(losses).isfinite().all() & grad_norm.isfinite())
        said = [flag_on(value, bad.device) for value in (bool(asked), self.saving.due())]
        flags = torch.stack([bad, *said])
        if self.world > 1:
            flags = any_process(flags)
        bad = flags[0]
        step_unless(self.optimizer, bad)
        norm.commit(self.layers, keep=~bad)
        self.method.after_step(progress)
        before, self.pending = self.pending, DeferredFlags.of(flags, losses, positions, step)
        self._apply(before)

    def images(self, micro: list[Any]) -> int:
        """How many images a step takes, of all processes."""
        return sum(len(part.positions) for raw in micro for part in raw_batches(raw)) * self.world

    def flush(self) -> None:
        """Wait for the last step's flags and apply them; called before logging, saving and stopping."""
        before, self.pending = self.pending, None
        self._apply(before)

    def _apply(self, flags: DeferredFlags | None) -> None:
        if flags is not None:
            bad, self.stop, self.due = flags.read()
            self._count(bad, flags.losses, flags.positions, flags.step)

    def _count(self, bad: bool, losses: list[Tensor], positions: list[Tensor], step: int) -> None:
        """Count and log skipped steps. Raises UserError after NON_FINITE_LIMIT in a row."""
        self.in_a_row = self.in_a_row + 1 if bad else 0
        if bad:
            self.non_finite += 1
            self.run.log(
                f"WARNING: non-finite loss or gradient at step {step + 1}, skipped on all processes "
                f"(positions {', '.join(_suspects(losses, positions))})"
            )
            if self.in_a_row >= NON_FINITE_LIMIT:
                raise UserError(
                    f"{self.in_a_row} non-finite steps in a row up to step {step + 1}; {self._after_non_finite()}"
                )

    def _after_non_finite(self) -> str:
        """A remedy that works: this run's folder takes no other optim.lr."""
        fresh = "begin anew with a lower optim.lr, or with optim.clip, in another run.dir"
        narrow = self.run.dtype != torch.float32
        return f"go on with run.precision=fp32, or {fresh}" if narrow else fresh

    def log(self, done: int, row: dict[str, Any], progress: Progress, alarm: Alarm | None = None) -> None:
        """Write a row of means over processes, and what `alarm` warns of in it. `data_wait` is the slowest process's."""
        rate = row.pop("lr")
        numbers = [float(value) for value in row.values()]  # waits for the GPU, so that its work counts in `rates`
        rates = progress.rates()
        waits = [rates["data_wait"] if process == self.rank else 0.0 for process in range(self.world)]
        values = torch.tensor([*numbers, *waits], device=self.run.device)
        sums = all_reduce_sum(values).tolist()
        means = {name: total / self.world for name, total in zip(row, sums, strict=False)}
        waits = sums[len(row) :]
        rates["data_wait"] = max(waits)
        epoch = done / self.steps_per_epoch
        self.run.metrics({"step": done, "epoch": epoch, **means, "lr": rate, **rates, "skipped": self.non_finite})
        progress.show(done, means, rates, waits.index(rates["data_wait"]))
        if alarm is not None and (warning := alarm(done, means)) is not None:
            self.run.log(f"WARNING: {warning}")
            self.run.metrics({"step": done, "epoch": epoch, "warning": warning})

    def save(self, done: int) -> None:
        """Rank 0 writes a checkpoint, and all processes wait for it. Raises MachineError if it is the last one and cannot be written."""
        # Gathering sharded tensors takes all processes.
        model = {name: self._kept(tensor) for name, tensor in self.method.state_dict().items()}
        moments = checkpoint.optimizer_tensors(self.optimizer, self.names)
        moments = {name: self._kept(tensor) for name, tensor in moments.items()}
        saved = None
        if self.run.main:
            groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            state = {
                "groups": groups,
                "scaler": self.scaler.state_dict(),
                "non_finite": self.non_finite,
                "in_a_row": self.in_a_row,
                "seed": self.seed,
                "config": science(self.run.verb, self.run.config),
            }
            saved = checkpoint.Checkpoint(done, model, moments, state)
        self.saving.write(saved, done, last=self.stop or done == self.steps)
        self.due = False

    def _kept(self, tensor: Tensor) -> Tensor:
        """A tensor as it is saved: gathered if sharded; then only rank 0 keeps the data."""
        if not self.sharded:
            return tensor
        gathered = unsharded(tensor)
        return gathered.cpu() if self.run.main else gathered.new_empty(0)

    def evaluated(self, done: int) -> bool:
        """Whether rank 0's metrics.jsonl holds the evaluators' row of that step: one whose keys have slashes."""
        found = self.run.main and any(row["step"] == done and any("/" in key for key in row) for row in self.run.rows())
        return bool(any_process(torch.full((1,), float(found), device=self.run.device)).item())

    def resume(self) -> int:
        """Load the newest undamaged checkpoint; returns its step, 0 without one. Raises UserError."""
        saved = checkpoint.agreed(self.run.checkpoints, self.run.log, self.run.device)
        if saved is None:
            self.run.cut_metrics(0)
            return 0
        own = self.method.state_dict()
        made_by = saved.state.get("config")  # earlier versions did not save it
        check_origin(self.run.checkpoints, made_by, self.run.verb, self.run.config, self.run.complete)
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in saved.model.items()}:
            odd = sorted(own.keys() ^ saved.model.keys()) or [
                k for k, v in own.items() if v.shape != saved.model[k].shape
            ]
            raise UserError(
                f"{self.run.checkpoints} is of another architecture ({', '.join(odd[:3])}); choose another run.dir"
            )
        self.method.load_state_dict({name: sharded_like(value, own[name]) for name, value in saved.model.items()})
        checkpoint.restore_optimizer(self.optimizer, self.names, saved.optimizer)
        self.scaler.load_state_dict(saved.state["scaler"])
        self.non_finite, self.in_a_row = saved.state["non_finite"], saved.state["in_a_row"]
        self.run.cut_metrics(saved.step)
        self.run.log(f"resumed from step {saved.step} of {self.steps}")
        return saved.step


def raw_batches(raw: Any) -> list[Any]:
    """The raw batches of a micro-batch: one, or the source's and the target's."""
    return [raw] if hasattr(raw, "positions") else list(raw)


def _suspects(losses: list[Tensor], positions: list[Tensor]) -> list[str]:
    """Position ranges of the micro-batches with a non-finite loss, on all processes; all ranges if none has one."""
    spans = torch.zeros(world(), len(losses), 3, dtype=torch.float64)
    for i, (loss, rows_of) in enumerate(zip(losses, positions, strict=True)):
        spans[rank(), i] = torch.tensor([not bool(loss.isfinite()), rows_of.min(), rows_of.max()], dtype=torch.float64)
    rows = all_reduce_sum(spans.to(losses[0].device)).flatten(0, 1).tolist()
    guilty = [row for row in rows if row[0]] or rows
    return [f"{low:.0f}..{high:.0f}" for _, low, high in guilty]
