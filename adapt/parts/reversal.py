"""Gradient reversal (Ganin & Lempitsky 2015, arXiv:1409.7495), its schedule, and the domain discriminator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


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


def reversal_weight(progress: float | Tensor, limit: float = 1.0) -> float | Tensor:
    """limit * (2 / (1 + exp(-10 p)) - 1): 0 at progress p = 0, 0.987 of the limit at p = 0.5 (lambda_p of DANN)."""
    decay = torch.exp(-10.0 * progress) if isinstance(progress, Tensor) else math.exp(-10.0 * progress)
    return limit * (2.0 / (1.0 + decay) - 1.0)


class Discriminator(nn.Module):
    """Predicts the domain: [N, D] -> logits [N], positive for the source. Two hidden layers, no BatchNorm.

    BatchNorm would remove the difference between domains if they were passed in separate batches.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, 0]
