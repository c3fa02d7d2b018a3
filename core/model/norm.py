"""BatchNorm whose statistics are of the whole global batch, of fixed groups of images, or of each process.

torch's BatchNorm uses the rows of one process, so its result depends on the number of processes; its SyncBatchNorm does not run on
the CPU. Here the config names the mode (`backbone.norm`), and `commit` updates the running statistics once a step, from all
micro-batches and processes, so they do not depend on how the batch was divided either.
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
from .division import refuse_undivided, too_few

Mode = Literal["batch", "group", "local"]
SOURCE_LAYER = "of_source"
"""The layer that a BatchNorm has for the source's images, where each domain has its own (core/model/domains.py)."""
_recording = True
_of_source = False


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Within it, forward passes do not change running statistics: for recomputation under activation checkpointing."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


@contextmanager
def of_source(source: bool = True) -> Iterator[None]:
    """Within it, forward passes are of source images: a BatchNorm with a layer for the source uses that one."""
    global _of_source
    before, _of_source = _of_source, source
    try:
        yield
    finally:
        _of_source = before


def recomputation() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for a forward pass and for its recomputation, which is of the same domain and must not count the same rows twice."""
    return nullcontext(), _again(_of_source)


@contextmanager
def _again(source: bool) -> Iterator[None]:
    with of_source(source), frozen_statistics():
        yield


class PositionBatchNorm(_BatchNorm):
    """BatchNorm (Ioffe & Szegedy 2015, arXiv:1502.03167) over [N, C, ...] with the statistics of `mode`.

    "batch": over the rows of all processes, differentiable; "group": over all rows of each `group` consecutive positions; "local":
    over this process's rows.
    Parameters, buffers and evaluation are those of torch's BatchNorm. `convert_batch_norms` makes it from one; never build it directly.
    """

    mode: Mode = "local"
    group: int = 0  # positions
    rows_per_position: int = 1
    # (mean, unbiased variance), each [groups, C], of the forwards of this micro-batch, and of the step's earlier micro-batches
    pending: list[tuple[Tensor, Tensor]]
    aside: list[tuple[Tensor, Tensor]]

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"BatchNorm needs [N, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if _of_source and (own := self._modules.get(SOURCE_LAYER)) is not None:
            return own(input)
        if not self.training or self.running_mean is None:
            return super().forward(input)
        self._check_input_dim(input)
        if self.mode == "batch" and world() > 1:
            return self._across_processes(input)
        groups = self._group_count(len(input))
        channels = input.shape[1]
        if input.numel() == groups * channels:
            raise UserError(too_few(self.group if self.mode == "group" else None))
        x = input
        if groups > 1:  # each group's channels become channels of their own: [rows, groups * C, ...]
            x = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)
        # With momentum 1 these buffers receive the statistics of this batch, without another pass over it.
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
        # All processes hold equally many rows of a batch (core/stream/batches.py, Share).
        count = x.numel() // x.shape[1] * world()
        mean = sum_with_gradient(x.sum(dims)) / count
        # Two passes: E[x^2] - E[x]^2 loses its digits in fp32.
        centred = x - mean.view(shape)
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


def parse_mode(text: str) -> tuple[Mode, int]:
    """`batch`, `local` or `group:G` (images a group) -> (mode, G). Raises UserError."""
    if text in ("batch", "local"):
        return text, 0
    if (match := re.fullmatch(r"group:(\d+)", text)) and int(match[1]) >= 2:
        return "group", int(match[1])
    raise UserError(f"backbone.norm: {text!r} is not a mode; use auto, batch, local or group:G with G >= 2 images")


def convert_batch_norms(module: nn.Module, mode: Mode, group: int = 0, rows_per_position: int = 1) -> int:
    """Give every BatchNorm inside `module` the mode, in place (weights and state-dict keys stay); returns how many there are.

    group: images a group. rows_per_position: rows of one image in a forward (2 for two views encoded together), so that a group
    holds all views of its images. Raises UserError for a kind of BatchNorm that cannot be converted.
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
                    f"backbone.norm: {name} is a {type(child).__name__}, which cannot normalise by batch or by group; choose a "
                    "backbone with torch's or timm's plain BatchNorm"
                )
        assert isinstance(child, PositionBatchNorm)
        child.mode, child.group, child.rows_per_position = mode, group, rows_per_position
        child.pending, child.aside = [], []
        count += 1
    return count


def set_rows(module: nn.Module, rows_per_position: int) -> None:
    """Set the rows per image before a forward with another number of views (local crops, say); groups keep the same images."""
    for layer in layers(module):
        if layer.mode == "group":
            layer.rows_per_position = rows_per_position


def layers(module: nn.Module) -> list[PositionBatchNorm]:
    """Every converted BatchNorm inside `module`: what `commit` takes."""
    return [m for m in module.modules() if isinstance(m, PositionBatchNorm)]


def set_aside(norms: Sequence[PositionBatchNorm]) -> None:
    """Empty `pending` between micro-batches: a compiled forward would be compiled again for every length of it."""
    for layer in norms:
        if layer.pending:  # a module's attributes are slow to set, and of a frozen network all layers are empty
            layer.aside += layer.pending
            layer.pending = []


@torch.no_grad()
def commit(norms: Sequence[PositionBatchNorm], keep: bool | Tensor = True) -> None:
    """Once a step: move running statistics towards the mean over all groups, forwards and processes since the last commit.

    keep: False discards the statistics of a skipped step; a bool scalar on the device decides without a wait for it.
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
        if momentum is None:  # a cumulative average, computed on the device
            momentum = (1.0 / layer.num_batches_tracked.clamp(min=1)).to(layer.running_mean.dtype)
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
        layer.running_var.lerp_(var.to(layer.running_var.dtype), momentum)


@contextmanager
def measured_anew(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Within it, BatchNorms forget their running statistics and take the mean over all forwards; after it they are in eval mode."""
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.train().momentum = None
    try:
        yield
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.eval().momentum = momentum


def encode_together(backbone: nn.Module, images: Tensor) -> Tensor:
    """Encode V views in one forward: [V, N, C, H, W] -> [V, N, D]; also for heads, [V, N, D] -> [V, N, D'].

    In separate forwards BatchNorm would normalise each view by its own statistics (lightly PR #1175). The V rows of an image are
    consecutive, so that the fixed groups of mode "group" hold whole images.
    """
    v, n = images.shape[:2]
    set_rows(backbone, v)
    features = backbone(images.transpose(0, 1).reshape(n * v, *images.shape[2:]))
    return features.view(n, v, -1).transpose(0, 1)


def configure(method: Method, text: str, *, accumulate: int, chunk: int | None, log: Callable[[str], None]) -> None:
    """Resolve `backbone.norm` for a method and convert its BatchNorms, or raise UserError if the mode cannot be honoured.

    auto: "batch" where several processes train a method that compares images or encodes several views, else "local".
    """
    refuse_undivided(method, accumulate, chunk)
    couples, rows = method.couples_samples, method.rows_per_position
    mode, group = (
        parse_mode(text) if text != "auto" else ("batch" if world() > 1 and (couples or rows > 1) else "local", 0)
    )
    divided_by = "run.accumulate" if accumulate > 1 else "run.chunk" if chunk is not None else None
    # Micro-batches divide the batch of every layer, chunks that of the backbone alone.
    if divided_by and mode == "batch" and _has_batch_norm(method if accumulate > 1 else method.backbone):
        raise UserError(
            f"{divided_by}: divides the batch, so BatchNorm cannot see the whole of it (backbone.norm: batch); "
            "use backbone.norm=group:G, whose groups are the same however the batch is divided"
        )
    if chunk is not None and mode == "group" and chunk % group:
        raise UserError(
            f"run.chunk: {chunk} is not a multiple of backbone.norm's groups of {group}; choose one that is"
        )
    normalised = _has_batch_norm(method)
    convert_batch_norms(method, mode, group, rows)
    if normalised and mode == "local" and (world() > 1 or divided_by):
        log(
            "BatchNorm statistics are those of each process's micro-batch (backbone.norm: local); they depend on the number of "
            "processes and micro-batches"
        )


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) for m in module.modules())
