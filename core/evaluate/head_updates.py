"""Optimizer steps for M linear heads at once: each head is a slice [m] of one tensor, with its own learning rate and weight decay.

They are torch's SGD and AdamW and MAE's LARS (util/lars.py), number for number up to the order of float32 sums. Vectors (biases) have no
weight decay, and LARS doesn't scale their steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

# LARS: a step is this part of the weight's norm (You et al. 2017, arXiv:1708.03888).
TRUST = 0.001
# AdamW's constants, torch's defaults.
BETAS, EPSILON = (0.9, 0.999), 1e-8
# CAPI's (Darcet et al. 2025, arXiv:2502.08769).
CAPI_BETAS = (0.9, 0.95)


class Update(Protocol):
    """One step of a tensor of M heads, in place.

    parameter, gradient: [M, ...]; the gradient may be overwritten. state: of this tensor, empty at first. lr, decay: [M, 1, ...]; decay is
    None for vectors. step: 0 at first.
    """

    def __call__(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: dict[str, Tensor],
        lr: Tensor,
        decay: Tensor | None,
        step: int,
        momentum: float,
    ) -> None: ...


def _sgd(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    lr: Tensor,
    decay: Tensor | None,
    step: int,
    momentum: float,
    *,
    nesterov: bool = False,
) -> None:
    if decay is not None:
        gradient.addcmul_(decay, parameter)
    if "momentum" not in state:
        state["momentum"] = torch.zeros_like(parameter)
    way = state["momentum"].mul_(momentum).add_(gradient)
    if nesterov:
        way = gradient.add_(way, alpha=momentum)
    parameter.addcmul_(lr, way, value=-1.0)


def _lars(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    lr: Tensor,
    decay: Tensor | None,
    step: int,
    momentum: float,
) -> None:
    if decay is not None:
        gradient.addcmul_(decay, parameter)
        axes = tuple(range(1, parameter.ndim))
        own = torch.linalg.vector_norm(parameter, dim=axes, keepdim=True)
        steep = torch.linalg.vector_norm(gradient, dim=axes, keepdim=True)
        gradient.mul_(torch.where((own > 0) & (steep > 0), TRUST * own / steep, 1.0))
    _sgd(parameter, gradient, state, lr, None, step, momentum)


def _adamw(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    lr: Tensor,
    decay: Tensor | None,
    step: int,
    momentum: float,
    *,
    betas: tuple[float, float] = BETAS,
) -> None:
    """Loshchilov & Hutter 2019, arXiv:1711.05101. It has moments of its own: `momentum` is not used."""
    if not state:
        state |= {"first": torch.zeros_like(parameter), "second": torch.zeros_like(parameter)}
    if decay is not None:
        parameter.mul_(1 - lr * decay)
    first = state["first"].lerp_(gradient, 1 - betas[0])
    second = state["second"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    below = second.sqrt().div_(math.sqrt(1 - betas[1] ** (step + 1))).add_(EPSILON)
    parameter.addcdiv_(first * lr, below, value=-1 / (1 - betas[0] ** (step + 1)))


UPDATES: Mapping[str, Update] = {
    "sgd": _sgd,
    "nesterov": partial(_sgd, nesterov=True),
    "lars": _lars,
    "adamw": _adamw,
    "adamw-0.95": partial(_adamw, betas=CAPI_BETAS),
}
