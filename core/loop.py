"""What happens inside a step of `fit`, and what is kept of it: update, agreement of processes, rows, checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, norm
from .distributed import all_reduce_sum, any_process, barrier, rank, world
from .errors import UserError
from .optim import Optim, set_rate
from .progress import Progress
from .run import Run

NON_FINITE_LIMIT = 5


@dataclass
class Loop:
    """One run's moving parts, so that `fit` reads as the loop that it is."""

    method: nn.Module
    optimizer: torch.optim.Optimizer
    optim: Optim
    run: Run
    steps: int
    steps_per_epoch: int
    seed: int
    non_finite: int = 0
    in_a_row: int = 0
    stop: bool = False  # someone asked, and all processes know

    def __post_init__(self) -> None:
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in self.method.named_parameters()}
        self.scaler = torch.amp.GradScaler(self.run.device.type, enabled=self.run.dtype == torch.float16)

    def step(
        self, wrapped: nn.Module, micro: list[Any], prepare: Callable[[Any], Any], step: int, asked: list[int]
    ) -> dict[str, Any]:
        """Forward, backward and update of one global batch; returns what is to be logged."""
        # Covers what lives inside foreign modules (dropout, drop path): keyed by the step, not by the order of calls.
        torch.manual_seed(step_seed(self.seed, rank(), step))
        self.method.train()
        progress = step / self.steps
        rate = self.optim.rate(step, self.steps, self.steps_per_epoch)
        set_rate(self.optimizer, rate)
        total, losses = self._backward(wrapped, micro, prepare, progress)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.optim.clip is not None:
            grad_norm = nn.utils.clip_grad_norm_(parameters, self.optim.clip)
        else:  # looked at in any case: one bad gradient would spoil the weights for good
            grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        total["grad_norm"] = grad_norm
        finite = self._agree(losses, grad_norm, asked, micro, step)
        if finite:
            self.scaler.step(self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.update()
        norm.commit(self.method, keep=finite)
        self.optimizer.zero_grad(set_to_none=True)
        if finite and hasattr(self.method, "after_step"):
            self.method.after_step(progress)  # pyright: ignore[reportCallIssue]
        return {**total, "lr": rate}

    def _backward(
        self, wrapped: nn.Module, micro: list[Any], prepare: Callable[[Any], Any], progress: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Accumulate the gradients of all micro-batches; returns the mean of loss and metrics, and each loss [M]."""
        share = 1.0 / len(micro)
        total: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        for i, raw in enumerate(micro):
            last = i == len(micro) - 1
            with torch.no_grad():
                batch = prepare(raw)
            with nullcontext() if last else self.run.accelerator.no_sync(wrapped):
                with torch.autocast(self.run.device.type, self.run.dtype, enabled=self.run.dtype != torch.float32):
                    out: Any = wrapped(batch, progress)
                self.scaler.scale(out.loss * share).backward()
            losses.append(out.loss.detach())
            for name, value in {"loss": losses[-1], **out.metrics}.items():
                total[name] = total.get(name, 0.0) + value.detach() * share
        return total, torch.stack(losses)

    def _agree(self, losses: Tensor, grad_norm: Tensor, asked: list[int], micro: list[Any], step: int) -> bool:
        """Whether the step counts, decided by all processes together; also whether any of them was asked to stop."""
        bad = ~losses.isfinite().all()
        if not self.scaler.is_enabled():  # the scaler looks for overflowing gradients itself, and mends its scale
            bad = bad | ~grad_norm.isfinite()
        flags = any_process(torch.stack([bad, torch.tensor(bool(asked), device=bad.device)]))
        non_finite, self.stop = flags.tolist()
        self.in_a_row = self.in_a_row + 1 if non_finite else 0
        if non_finite:
            self.non_finite += 1
            self.run.log(
                f"WARNING: non-finite loss or gradient at step {step + 1}, skipped on all processes "
                f"(positions {', '.join(_suspects(losses, micro))})"
            )
            if self.in_a_row >= NON_FINITE_LIMIT:
                raise UserError(
                    f"{self.in_a_row} non-finite steps in a row up to step {step + 1}; the last checkpoint is whole; "
                    "lower optim.lr, set optim.clip, or use run.precision=fp32"
                )
        return not non_finite

    def log(self, done: int, row: dict[str, Any], progress: Progress) -> None:
        """Write a row of means over processes."""
        rate = row.pop("lr")
        values = torch.tensor([float(value) for value in row.values()], device=self.run.device)
        means = dict(zip(row, (all_reduce_sum(values) / world()).tolist(), strict=True))
        rates = progress.rates()
        epoch = done / self.steps_per_epoch
        self.run.metrics({"step": done, "epoch": epoch, **means, "lr": rate, **rates, "skipped": self.non_finite})
        progress.show(done, means, rates)

    def save(self, done: int) -> None:
        """Rank 0 writes; everyone waits, so that nobody runs ahead of a checkpoint that may fail."""
        if self.run.main:
            groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            state = {
                "groups": groups,
                "scaler": self.scaler.state_dict(),
                "non_finite": self.non_finite,
                "in_a_row": self.in_a_row,
                "seed": self.seed,
            }
            moments = checkpoint.optimizer_tensors(self.optimizer, self.names)
            whole = checkpoint.Checkpoint(done, self.method.state_dict(), moments, state)
            checkpoint.save(self.run.checkpoints, whole, self.run.options["checkpoint"]["keep"])
        barrier()

    def resume(self) -> int:
        """Load the newest whole checkpoint; returns its step, 0 without one."""
        saved = checkpoint.latest(self.run.checkpoints, self.run.log)
        barrier()  # nobody may save, and thereby delete, while another still reads
        if saved is None:
            self.run.cut_metrics(0)
            return 0
        own = self.method.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in saved.model.items()}:
            odd = sorted(own.keys() ^ saved.model.keys()) or [
                k for k, v in own.items() if v.shape != saved.model[k].shape
            ]
            raise UserError(
                f"{self.run.checkpoints} is of another architecture ({', '.join(odd[:3])}); choose another run.dir"
            )
        self.method.load_state_dict(saved.model)
        checkpoint.restore_optimizer(self.optimizer, self.names, saved.optimizer)
        self.scaler.load_state_dict(saved.state["scaler"])
        self.non_finite, self.in_a_row = saved.state["non_finite"], saved.state["in_a_row"]
        self.run.cut_metrics(saved.step)
        self.run.log(f"resumed from step {saved.step} of {self.steps}")
        return saved.step


def step_seed(seed: int, process: int, step: int) -> int:
    """A 63-bit seed for torch's own generator."""
    digest = hashlib.sha256(f"{seed}/{process}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def samples(raw: Any) -> list[Any]:
    """The samples of a micro-batch: one, or a source's and a target's."""
    return [raw] if hasattr(raw, "positions") else list(raw)


def _suspects(losses: Tensor, micro: list[Any]) -> list[str]:
    """The ranges of positions of the micro-batches, of all processes, whose loss is not finite; of all where each loss is."""
    spans = torch.zeros(world(), len(micro), 3, dtype=torch.float64)
    for i, raw in enumerate(micro):
        positions = samples(raw)[0].positions
        spans[rank(), i] = torch.tensor(
            [not bool(losses[i].isfinite()), positions.min(), positions.max()], dtype=torch.float64
        )
    rows = all_reduce_sum(spans.to(losses.device)).flatten(0, 1).tolist()
    guilty = [row for row in rows if row[0]] or rows
    return [f"{low:.0f}..{high:.0f}" for _, low, high in guilty]
