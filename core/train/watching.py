"""What a method watches at log steps (`Method.watch`), beside the training: its weights are the same with and without."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..method import Method
from ..model import norm
from ..run.directory import Run


def watched(method: Method, batch: Any, progress: float, turn: int, run: Run) -> Mapping[str, Tensor]:
    """The metrics of `Method.watch` for a batch on which the backward pass was just made; called on all processes.

    In the training's precision; forward passes within it leave BatchNorm's running statistics alone.
    """
    half = run.dtype != torch.float32
    with torch.autocast(run.device.type, run.dtype) if half else nullcontext(), norm.frozen_statistics():
        return method.watch(batch, progress, turn)
