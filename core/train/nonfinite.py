"""Skipped steps: counting and naming them, and skipping on the device, where the host does not wait for the decision and reads it one
step later.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed import all_reduce_sum, rank, world
from ..errors import UserError
from ..run.directory import Run

NON_FINITE_LIMIT = 5  # skipped steps in a row that end a training


class DeferredFlags(NamedTuple):
    """A step's flags, agreed between processes, on their way from the device to the host."""

    flags: Tensor  # bool [3] on the host: is the step non-finite; was any process asked to stop; is a checkpoint due by the clock
    arrived: torch.Event | None  # on a GPU: when `flags` may be read
    losses: list[Tensor]
    positions: list[Tensor]
    step: int

    @classmethod
    def of(cls, flags: Tensor, losses: list[Tensor], positions: list[Tensor], step: int) -> DeferredFlags:
        """flags: bool [3] on the device."""
        if not flags.is_cuda:
            return cls(flags, None, losses, positions, step)
        host = torch.empty(3, dtype=torch.bool, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        arrived = torch.Event(flags.device)
        arrived.record()
        return cls(host, arrived, losses, positions, step)

    def read(self) -> tuple[bool, bool, bool]:
        """(bad, stop, due). Waits for that step only, not for later work on the device."""
        if self.arrived is not None:
            self.arrived.synchronize()
        bad, stop, due = self.flags.tolist()
        return bad, stop, due


def flag_on(value: bool, device: torch.device) -> Tensor:
    """A bool scalar, filled on the device: a copy from the host would wait."""
    return torch.full((), value, dtype=torch.bool, device=device)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Create SGD's momentum buffers before the first step: torch leaves them uninitialised if that step is skipped on the device.

    Zeros give the same first update: momentum * 0 + gradient.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """optimizer.step(), without effect on weights and state if `bad` (bool scalar on the device) is True.

    torch's fused optimizers take the flag themselves; for others, weights and state are restored.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        return
    kept = {tensor: tensor.detach().clone() for tensor in _tensors(optimizer)}
    optimizer.step()
    with torch.no_grad():
        for tensor in _tensors(optimizer):
            # State that this step created (a first momentum) becomes zero, so the next step computes what a first step would.
            old = kept[tensor] if tensor in kept else torch.zeros_like(tensor)
            tensor.copy_(torch.where(bad, old, tensor))


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Trained weights and their moments."""
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return weights + [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]


class Skipped:
    """How many steps of a run were skipped because of a non-finite loss or gradient."""

    def __init__(self, run: Run) -> None:
        self.run, self.total, self.in_a_row = run, 0, 0

    def count(self, bad: bool, losses: list[Tensor], positions: list[Tensor], step: int) -> None:
        """Count and log a skipped step. Raises UserError after NON_FINITE_LIMIT in a row."""
        self.in_a_row = self.in_a_row + 1 if bad else 0
        if bad:
            self.total += 1
            self.run.log(
                f"WARNING: non-finite loss or gradient at step {step + 1}, skipped on all processes "
                f"(positions {', '.join(_suspects(losses, positions))})"
            )
            if self.in_a_row >= NON_FINITE_LIMIT:
                raise UserError(f"{self.in_a_row} non-finite steps in a row up to step {step + 1}; {self._remedy()}")

    def _remedy(self) -> str:
        """One that works: this run's folder takes no other optim.lr."""
        fresh = "begin anew with a lower optim.lr, or with optim.clip, in another run.dir"
        narrow = self.run.dtype != torch.float32
        return f"go on with run.precision=fp32, or {fresh}" if narrow else fresh


def _suspects(losses: list[Tensor], positions: list[Tensor]) -> list[str]:
    """Position ranges of the micro-batches with a non-finite loss, on all processes; all ranges if none has one."""
    spans = torch.zeros(world(), len(losses), 3, dtype=torch.float64)
    for i, (loss, rows_of) in enumerate(zip(losses, positions, strict=True)):
        spans[rank(), i] = torch.tensor([not bool(loss.isfinite()), rows_of.min(), rows_of.max()], dtype=torch.float64)
    rows = all_reduce_sum(spans.to(losses[0].device)).flatten(0, 1).tolist()
    guilty = [row for row in rows if row[0]] or rows
    return [f"{low:.0f}..{high:.0f}" for _, low, high in guilty]
