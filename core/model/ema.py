"""Teachers: copies of a network that follow it as an exponential moving average (Tarvainen & Valpola 2017, arXiv:1703.01780).

A teacher is part of its method's state, so checkpoints hold it; its momentum is a function of progress and need not be stored. Its
BatchNorm layers use the statistics of their own batch and keep running statistics of their own: these fit the averaged weights, which
an average of the student's statistics would not.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..distributed import own_shard
from ..numerics import approach

Module = TypeVar("Module", bound=nn.Module)


def teacher_of(student: Module) -> Module:
    """A copy with the same weights, without gradients, dropout or drop path, since targets should have no noise."""
    teacher = copy.deepcopy(student)
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    for module in teacher.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, PatchDropout):
            module.prob = 0.0
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float | Tensor, skipped: Tensor | None = None) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for all parameters; both have the same architecture.

    momentum: a scalar tensor where it is kept on the device, which is then not waited for. skipped: `Method.skipped`; the teacher then
    stays where the step was skipped.
    """
    slow, fast = ([own_shard(p) for p in network.parameters()] for network in (teacher, student))
    if (skipped is not None or isinstance(momentum, Tensor)) and slow and slow[0].is_cuda:
        # Of the type of the weights: the kernels for all of them take no other.
        share = (
            (1.0 - momentum).to(slow[0])
            if isinstance(momentum, Tensor)
            else torch.full((), 1.0 - momentum, device=slow[0].device)
        )
        return move_together(slow, fast, share if skipped is None else share.masked_fill(skipped, 0.0))
    if skipped is not None or isinstance(momentum, Tensor):
        for mine, other in zip(slow, fast, strict=True):
            approach(mine, other, 1.0 - momentum, skipped)
        return
    torch._foreach_lerp_(slow, fast, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]


def move_together(slow: list[Tensor], fast: list[Tensor], share: Tensor) -> None:
    """slow <- slow + share (fast - slow), in a few kernels for all tensors, where one for each would take longer to start than to run.

    share: a scalar tensor on their device, which is not waited for; where it is 0, not a bit changes.
    """
    steps = torch._foreach_sub(fast, slow)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_mul_(steps, share)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(slow, steps)  # pyright: ignore[reportPrivateImportUsage]
