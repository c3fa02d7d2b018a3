"""Gradient reversal (Ganin & Lempitsky 2015, arXiv:1409.7495), its schedule, and the domain discriminator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...core.model.norm import encode_together


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float | Tensor) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grads[0], None


def reverse_gradient(x: Tensor, weight: float | Tensor) -> Tensor:
    """The identity in the forward pass; the backward pass multiplies the gradient by -weight."""
    return _Reverse.apply(x, weight)  # pyright: ignore[reportReturnType]


def reversal_weight(progress: float | Tensor, limit: float = 1.0, steepness: float = 10.0) -> float | Tensor:
    """limit * (2 / (1 + exp(-steepness p)) - 1): 0 at progress p = 0, 0.987 of the limit at p = 0.5 with 10 (lambda_p of DANN)."""
    decay = torch.exp(-steepness * progress) if isinstance(progress, Tensor) else math.exp(-steepness * progress)
    return limit * (2.0 / (1.0 + decay) - 1.0)


class Discriminator(nn.Module):
    """Predicts the domain: [V, N, D] -> logits [V, N], positive for the source; also [N, D] -> [N]. Two hidden layers.

    batchnorm: whether BatchNorm follows each hidden layer, as in tllib. All V rows pass it as one batch: in separate batches it would
    remove the difference between domains (DeepDA's does).
    """

    def __init__(self, dim: int, hidden: int, batchnorm: bool = False) -> None:
        super().__init__()
        self.batchnorm = batchnorm
        layers: list[nn.Module] = []
        for width in (dim, hidden):
            layers += [
                nn.Linear(width, hidden),
                *([nn.BatchNorm1d(hidden)] if batchnorm else []),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return self.layers(x)[:, 0]
        if not self.batchnorm:
            return self.layers(x.flatten(0, 1))[:, 0].unflatten(0, x.shape[:2])
        return encode_together(self.layers, x)[:, :, 0]
