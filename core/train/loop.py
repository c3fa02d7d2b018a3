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
from .layer_gradients import LayerGradients
from .nonfinite import DeferredFlags, Skipped, flag_on, start_momentum, step_unless
from .optim import Optim, set_rate
from .progress import Progress
from .saving import Saving
from .seeds import seed_generators, step_seed
from .turns import of_turn, prepared_once, raw_batches, with_absent
from .watching import watched

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
    stop: bool = False  # some process was asked to stop, and all processes know it
    due: bool = False  # a checkpoint is due by rank 0's clock, and all processes know it
    deferred: bool | None = None
    sharded: bool = False  # whether the parameters of `method` are sharded
    watching: bool = False  # whether this step is logged

    def __post_init__(self) -> None:
        self.turns, self.bad, self.skipped = self.method.turns, False, Skipped(self.run)
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
        self.gradients = LayerGradients(self.method) if self.run.options["log_gradients"] else None
        if self.deferred:
            start_momentum(self.optimizer)

    def step(
        self, wrapped: Callable[..., Any], micro: list[Any], prepare: Callable[[Any], Any], step: int, asked: list[int]
    ) -> dict[str, Any]:
        """All turns on one global batch, usually one: forward, backward and update; returns the values to be logged."""
        progress = step / self.steps
        rate = self.optim.rate(step, self.steps, self.steps_per_epoch)
        constant = self.optim.rate(step, self.steps, self.steps_per_epoch, constant=True) if self.constant else None
        set_rate(self.optimizer, rate, self.optim.decay(step, self.steps), constant)
        row: dict[str, Any] = {}
        losses: list[Tensor] = []
        flags: Tensor | None = None
        ready = prepared_once(prepare, micro[0]) if self.turns > 1 else lambda raw, _: prepare(raw)
        for turn in range(self.turns):
            # For random layers of timm's and torch's (dropout, drop path): they depend on the step, not on the order of calls.
            seed_generators(step_seed(self.seed, self.rank, step, turn), self.run.device)
            found, parts = self.backward(wrapped, micro, ready, progress, turn)
            grad_norm, by_layer = self._clipped(progress, turn)
            found |= {"grad_norm": grad_norm, **by_layer}
            row |= found if self.turns == 1 else of_turn(found, turn)
            losses = [old + new for old, new in zip(losses, parts, strict=True)] if losses else parts
            over = False
            if self.deferred:
                flags = self._update_deferred(parts, grad_norm, asked, flags)
            else:
                over = self._update(parts, grad_norm, asked)
            for parameter in self.parameters:  # as zero_grad does, which takes a tenth of the time of a small step
                parameter.grad = None
            if over:
                break
        positions = [raw_batches(raw)[0].positions for raw in micro]
        if flags is not None:
            self.method.skipped = flags[0]
            self.method.after_step(progress)
            self.method.skipped = None
            before, self.pending = self.pending, DeferredFlags.of(flags, losses, positions, step)
            self._apply(before)
        else:
            if not self.bad:
                self.method.after_step(progress)
            self.skipped.count(self.bad, losses, positions, step)
        return {**row, "lr": rate}

    def backward(
        self,
        wrapped: Callable[..., Any],
        micro: list[Any],
        ready: Callable[[Any, int], Any],
        progress: float,
        turn: int = 0,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Accumulate the gradients of all micro-batches; returns the means of loss and metrics, and each micro-batch's loss.

        ready: (raw batch, turn) -> the method's batch.
        """
        share = 1.0 / len(micro)
        total: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        absent: list[torch.nn.Parameter] = []
        half = self.run.dtype != torch.float32
        for i, raw in enumerate(micro):
            last = i == len(micro) - 1
            with torch.no_grad():
                batch = ready(raw, turn)
            with nullcontext() if last else self.unsynced():
                with torch.autocast(self.run.device.type, self.run.dtype) if half else nullcontext():
                    out: Any = wrapped(batch, progress, turn) if self.turns > 1 else wrapped(batch, progress)
                if out.kept:
                    self.method.keep(out.kept)
                loss = out.loss if share == 1.0 else out.loss * share
                if self.turns > 1:
                    loss, absent = with_absent(loss, self.parameters)
                (self.scaler.scale(loss) if self.scaler.is_enabled() else loss).backward()
                if last and self.watching and not self.sharded:
                    total |= watched(self.method, batch, progress, turn, self.run)
            if not last:
                norm.set_aside(self.layers)
            losses.append(out.loss.detach())
            phase.note_progress(i + 1, len(micro))
            for name, value in {"loss": losses[-1], **out.metrics}.items():
                part = value.detach() if share == 1.0 else value.detach() * share
                total[name] = total[name] + part if name in total else part
        for parameter in absent:
            parameter.grad = None
        return total, losses

    def _clipped(self, progress: float, turn: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Drop the gradients of parameters that rest, and clip the others; returns their norm from before, and each layer's if logged."""
        frozen: Any = self.method.frozen
        for parameter in frozen(progress, turn) if self.turns > 1 else frozen(progress):
            # None, not zeros: with zeros the optimizer would decay the weights and count a step in Adam's bias correction.
            parameter.grad = None
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        by_layer = self.gradients.norms() if self.watching and self.gradients is not None else {}
        return self.optim.clip_gradients(self.parameters), by_layer

    def _update(self, losses: list[Tensor], grad_norm: Tensor, asked: list[int]) -> bool:
        """Update the weights unless some process has a non-finite loss or gradient; learn whether any was asked to stop.

        Returns whether the step ends here: further turns would answer an update that was not made.
        """
        # Each number is needed on the host here anyway, where Python's isfinite is faster than torch's.
        bad = not all(math.isfinite(loss.item()) for loss in losses)
        overflow = not math.isfinite(grad_norm.item())
        if not self.scaler.is_enabled():  # the scaler checks gradients itself, and lowers its scale
            bad = bad or overflow
        self.stop, self.due = bool(asked), self.saving.due()
        if self.world > 1:
            flags = torch.tensor([bad, self.stop, self.due], device=grad_norm.device)
            bad, self.stop, self.due = any_process(flags).tolist()
        if not bad:
            self.scaler.step(self.optimizer) if self.scaler.is_enabled() else self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        norm.commit(self.layers, keep=not bad)
        self.bad = bad
        return bad or overflow

    def _update_deferred(
        self, losses: list[Tensor], grad_norm: Tensor, asked: list[int], before: Tensor | None
    ) -> Tensor:
        """As `_update`, without waiting for the device: it skips a bad update, and the host learns of it after the next step.

        before: the flags of the step's turn before; after a bad one the others are skipped too. Returns this turn's: bad, stop, due.
        A skipped step leaves weights, moments and running statistics unchanged. `after_step` is called all the same, with the flag as
        `Method.skipped`.
        """
        bad = ~(torch.stack(losses).isfinite().all() & grad_norm.isfinite())
        if before is not None:
            bad = bad | before[0]
        said = [flag_on(value, bad.device) for value in (bool(asked), self.saving.due())]
        flags = torch.stack([bad, *said])
        if self.world > 1:
            flags = any_process(flags)
        bad = flags[0]
        step_unless(self.optimizer, bad)
        norm.commit(self.layers, keep=~bad)
        return flags

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
            self.skipped.count(bad, flags.losses, flags.positions, flags.step)

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
        place = {"step": done, "epoch": done / self.steps_per_epoch}
        self.run.metrics({**place, **means, "lr": rate, **rates, "skipped": self.skipped.total})
        progress.show(done, means, rates, waits.index(rates["data_wait"]))
        if alarm is not None and (warning := alarm(done, means)) is not None:
            self.run.log(f"WARNING: {warning}")
            self.run.metrics({**place, "warning": warning})

    def save(self, done: int) -> None:
        """Rank 0 writes a checkpoint, and all processes wait for it. Raises MachineError if it is the last one and cannot be written."""
        # Gathering sharded tensors takes all processes.
        model = {name: self._kept(tensor) for name, tensor in self.method.state_dict().items()}
        own = checkpoint.optimizer_tensors(self.optimizer, self.names)
        moments = {name: self._kept(tensor) for name, tensor in own.items()}
        saved = None
        if self.run.main:
            groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            state = {
                "groups": groups,
                "scaler": self.scaler.state_dict(),
                "non_finite": self.skipped.total,
                "in_a_row": self.skipped.in_a_row,
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
        """Whether rank 0's metrics.jsonl holds the evaluators' row of that step: one whose keys have slashes, and that has no rate."""
        rows = self.run.rows() if self.run.main else ()
        found = any(row["step"] == done and "lr" not in row and any("/" in key for key in row) for row in rows)
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
        self.skipped.total, self.skipped.in_a_row = saved.state["non_finite"], saved.state["in_a_row"]
        self.run.cut_metrics(saved.step)
        self.run.log(f"resumed from step {saved.step} of {self.steps}")
        return saved.step
