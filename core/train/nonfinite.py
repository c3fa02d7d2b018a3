"""Skipping a bad update without asking the device: the decision stays where the gradients are, and the host reads it later."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DeferredFlags(NamedTuple):
    """What all processes decided about a step, on its way to the host."""

    flags: Tensor  # bool [2] on the host: is the step bad; was anyone asked to stop
    arrived: torch.Event | None  # on a GPU: when `flags` may be read
    losses: list[Tensor]
    positions: list[Tensor]
    step: int

    @classmethod
    def of(cls, flags: Tensor, losses: list[Tensor], positions: list[Tensor], step: int) -> DeferredFlags:
        """flags: bool [2] on the device."""
        if not flags.is_cuda:
            return cls(flags, None, losses, positions, step)
        host = torch.empty(2, dtype=torch.bool, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        arrived = torch.Event(flags.device)
        arrived.record()
        return cls(host, arrived, losses, positions, step)

    def read(self) -> tuple[bool, bool]:
        """(bad, stop). Waits for that step alone, not for what was sent to the device after it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        bad, stop = self.flags.tolist()
        return bad, stop


def asked_flag(asked: bool, device: torch.device) -> Tensor:
    """A bool scalar on the device, filled there: copying it from the host would wait."""
    return torch.full((), asked, dtype=torch.bool, device=device)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD its momentum buffers before the first step: torch leaves them unwritten if that one is skipped on the device.

    From zeros the first update is the same: momentum * 0 + gradient.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """optimizer.step() that leaves weights and state alone where `bad` (bool scalar on the device) says so.

    torch's fused optimizers take the flag themselves; for others what they changed is put back.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        return
    kept = {tensor: tensor.detach().clone() for tensor in _tensors(optimizer)}
    optimizer.step()
    with torch.no_grad():
        for tensor in _tensors(optimizer):
            # What this step began, a first momentum, begins at zero: the next step then writes what it would have begun with.
            old = kept[tensor] if tensor in kept else torch.zeros_like(tensor)
            tensor.copy_(torch.where(bad, old, tensor))


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Trained weights and their moments."""
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return weights + [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
