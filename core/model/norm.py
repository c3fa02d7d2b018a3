"""BatchNorm that knows positions: statistics over the whole global batch, over fixed groups, or per process.

torch's BatchNorm normalises by whatever a process happens to hold, so its result depends on the number of processes; its
SyncBatchNorm refuses the CPU. Here the mode is named in the config (`backbone.norm`), and the running statistics are updated once
a step by `commit`, from all micro-batches and processes, so that they too do not depend on how the batch was cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed import all_reduce_sum, sum_with_gradient, world
from ..errors import UserError
from ..method import Method

Mode = Literal["batch", "group", "local"]
_recording = True


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Within it, forward passes leave no trace in running statistics: for recomputation under activation checkpointing."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


def recomputation() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a forward pass and of its recomputation, which sees the same rows again and must not count them twice."""
    return nullcontext(), frozen_statistics()


class PositionBatchNorm(_BatchNorm):
    """BatchNorm (Ioffe & Szegedy 2015, arXiv:1502.03167) over [N, C, ...] with the statistics of `mode`.

    "batch": over all processes, differentiable; "group": over each `group` consecutive positions, with all their rows; "local":
    over this process's rows.
    Parameters, buffers and evaluation are those of torch's BatchNorm; made from one by `convert`, never built directly.
    """

    mode: Mode = "local"
    group: int = 0  # positions
    rows_per_position: int = 1
    pending: list[
        tuple[Tensor, Tensor]
    ]  # (mean, unbiased variance) of forwards, each [groups, C], to be set aside or committed
    aside: list[tuple[Tensor, Tensor]]  # those of the step's earlier micro-batches

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"BatchNorm needs [N, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.running_mean is None:
            return super().forward(input)
        self._check_input_dim(input)
        if self.mode == "batch" and world() > 1:
            return self._across_processes(input)
        groups = self._group_count(len(input))
        channels = input.shape[1]
        x = input
        if groups > 1:  # each group's channels become channels of their own: [rows, groups * C, ...]
            x = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)
        # With momentum 1 the scratch buffers receive the statistics of this batch, at no extra pass.
        mean = torch.zeros(groups * channels, dtype=self.running_mean.dtype, device=x.device)
        var = torch.zeros_like(mean)
        weight = None if self.weight is None else self.weight.repeat(groups)
        bias = None if self.bias is None else self.bias.repeat(groups)
        out = F.batch_norm(x, mean, var, weight, bias, True, 1.0, self.eps)
        if groups > 1:
            out = out.unflatten(1, (groups, channels)).transpose(0, 1).flatten(0, 1)
        self._record(mean.view(groups, channels), var.view(groups, channels))
        return out

    def _across_processes(self, input: Tensor) -> Tensor:
        x = input if input.dtype == torch.float64 else input.float()
        dims = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        count = (
            x.numel() // x.shape[1] * world()
        )  # processes hold equal parts of a batch (core/stream/batches.py, Share)
        mean = sum_with_gradient(x.sum(dims)) / count
        centred = x - mean.view(shape)  # two passes: the sum of squares minus the square of sums cancels in fp32
        var = sum_with_gradient(centred.square().sum(dims)) / count
        self._record(mean.detach()[None], var.detach()[None] * (count / (count - 1)))
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _group_count(self, n: int) -> int:
        if self.mode != "group":
            return 1
        rows = self.group * self.rows_per_position
        if n % rows:
            raise UserError(
                f"backbone.norm: groups of {rows} rows do not divide the {n} rows of a process's micro-batch; "
                "choose a group that divides optim.batch_size / (processes * run.accumulate)"
            )
        return n // rows

    def _record(self, mean: Tensor, var: Tensor) -> None:
        if _recording and self.track_running_stats:
            self.pending.append((mean, var))


class PositionBatchNormAct(PositionBatchNorm):
    """The same for timm's fused BatchNorm + dropout + activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def parse(text: str) -> tuple[Mode, int]:
    """`batch`, `local` or `group:G` (images a group) -> (mode, G). Raises UserError."""
    if text in ("batch", "local"):
        return text, 0
    if (match := re.fullmatch(r"group:(\d+)", text)) and int(match[1]) >= 2:
        return "group", int(match[1])
    raise UserError(f"backbone.norm: {text!r} is not a mode; use auto, batch, local or group:G with G >= 2 images")


def convert(module: nn.Module, mode: Mode, group: int = 0, rows_per_position: int = 1) -> int:
    """Give every BatchNorm inside `module` the mode, in place (weights and state-dict keys stay); returns how many there are.

    group: images a group. rows_per_position: rows that one position contributes to a forward (2 for two views encoded
    together, position by position), so that a group always holds all views of its images.
    """
    count = 0
    for name, child in module.named_modules():
        if not isinstance(child, _BatchNorm):
            continue
        if not isinstance(child, PositionBatchNorm):
            kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
            if type(child) is BatchNormAct2d:
                child.__class__ = PositionBatchNormAct
            elif type(child) in kinds:
                child.__class__ = PositionBatchNorm
            else:
                raise UserError(
                    f"{name}: {type(child).__name__} has no form that knows positions; use a model with plain BatchNorm"
                )
        assert isinstance(child, PositionBatchNorm)
        child.mode, child.group, child.rows_per_position = mode, group, rows_per_position
        child.pending, child.aside = [], []
        count += 1
    return count


def set_rows(module: nn.Module, rows_per_position: int) -> None:
    """Before a forward of another number of rows a position (local crops, say): its groups hold the same positions all the same."""
    for layer in layers(module):
        if layer.mode == "group":
            layer.rows_per_position = rows_per_position


def layers(module: nn.Module) -> list[PositionBatchNorm]:
    """Every BatchNorm inside `module` that `commit` has to do with."""
    return [m for m in module.modules() if isinstance(m, PositionBatchNorm)]


def set_aside(norms: Sequence[PositionBatchNorm]) -> None:
    """Between micro-batches: a compiled graph holds for one length of `pending` alone, so each forward begins with none."""
    for layer in norms:
        layer.aside += layer.pending
        layer.pending = []


@torch.no_grad()
def commit(norms: Sequence[PositionBatchNorm], keep: bool | Tensor = True) -> None:
    """Once a step: move running statistics towards the mean over all groups, forwards and processes since the last commit.

    keep: False throws the step's statistics away (the step was skipped); a bool scalar on the device decides there.
    """
    set_aside(norms)
    layers = [layer for layer in norms if layer.aside]
    if not layers:
        return
    rows = [torch.cat([torch.cat(pair, 1) for pair in layer.aside]).mean(0) for layer in layers]
    for layer in layers:
        layer.aside = []
    if keep is False:
        return
    flat = all_reduce_sum(torch.cat(rows)) / world()
    for layer, row in zip(layers, flat.split([len(row) for row in rows]), strict=True):
        mean, var = row.chunk(2)
        assert (
            layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None
        )
        if isinstance(keep, Tensor):
            mean, var = (
                torch.where(keep, new, old) for new, old in ((mean, layer.running_mean), (var, layer.running_var))
            )
        layer.num_batches_tracked += 1 if keep is True else keep
        momentum: Any = layer.momentum
        if momentum is None:  # a running mean, kept on the device
            momentum = (1.0 / layer.num_batches_tracked.clamp(min=1)).to(layer.running_mean.dtype)
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
        layer.running_var.lerp_(var.to(layer.running_var.dtype), momentum)


def encode(backbone: nn.Module, images: Tensor) -> Tensor:
    """Encode V stacked sets of images in ONE forward: [V, N, C, H, W] -> [V, N, D]; also heads, [V, N, D] -> [V, N, D'].

    One forward, or BatchNorm would tell the sets apart (lightly PR #1175); rows go position by position, so that the fixed
    groups of mode "group" hold all V rows of their images.
    """
    v, n = images.shape[:2]
    set_rows(backbone, v)
    features = backbone(images.transpose(0, 1).reshape(n * v, *images.shape[2:]))
    return features.view(n, v, -1).transpose(0, 1)


def configure(method: Method, text: str, *, accumulate: int, chunk: int | None, log: Callable[[str], None]) -> None:
    """Resolve `backbone.norm` for a method and convert it, or refuse in one sentence what would not be what it says.

    auto: "batch" where several processes train a
    method that looks at samples together, else "local". Raises UserError.
    """
    couples, rows, chunked = method.couples_samples, method.rows_per_position, method.takes_chunk
    if accumulate > 1 and couples:
        remedy = "run.chunk (images encoded at once)" if chunked else "a smaller optim.batch_size"
        raise UserError(
            f"run.accumulate: {accumulate} would change this method, whose loss couples all samples of a batch; "
            f"use {remedy} to save memory instead"
        )
    if chunk is not None and not couples:
        raise UserError("run.chunk: is for losses that couple samples; use run.accumulate for this method")
    if chunk is not None and not chunked:
        raise UserError("run.chunk: this method cannot cut its encoder's batch; leave run.chunk out")
    layers = sum(isinstance(m, _BatchNorm) for m in method.modules())
    together = couples or rows > 1
    mode, group = (("batch" if together and world() > 1 else "local"), 0) if text == "auto" else parse(text)
    cut = (accumulate > 1 and "run.accumulate") or (chunk is not None and "run.chunk")
    if cut and mode == "batch" and any(isinstance(m, _BatchNorm) for m in method.backbone.modules()):
        raise UserError(
            f"{cut}: cuts the batch, so BatchNorm cannot see the whole of it (backbone.norm: batch); "
            "use backbone.norm=group:G, whose groups are the same however the batch is cut"
        )
    if chunk is not None and mode == "group" and chunk % group:
        raise UserError(
            f"run.chunk: {chunk} is not a multiple of backbone.norm's groups of {group}; choose one that is"
        )
    convert(method, mode, group, rows)
    if layers and mode == "local" and (world() > 1 or cut):
        log(
            "BatchNorm statistics are those of each process's micro-batch (backbone.norm: local); they depend on how the batch is cut"
        )
