"""Sinkhorn-Knopp and the loss over pairs of crops one number at a time: the reference of the tests of DINO and SwAV."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def slow_sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """[N, K] -> [N, K]: scaled alternately so that each prototype has 1/K of the total, then each sample 1/N; times N at the end."""
    n, k = logits.shape
    q = [[math.exp(float(logits[i, j]) / temperature) for j in range(k)] for i in range(n)]
    for _ in range(iterations):
        for j in range(k):
            total = sum(q[i][j] for i in range(n))
            for i in range(n):
                q[i][j] /= k * total
        for i in range(n):
            total = sum(q[i])
            q[i] = [value / (n * total) for value in q[i]]
    return torch.tensor(q, dtype=torch.float64) * n


def slow_crops_loss(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """-sum_k q_k log p_k for each target, each other crop and each image; their mean. Differentiable."""
    losses = []
    for t in range(len(targets)):
        for s in range(len(logits)):
            if s == t:
                continue
            for i in range(logits.shape[1]):
                exponentials = [(x / temperature).exp() for x in logits[s, i]]
                total = torch.stack(exponentials).sum()
                terms = [-q * (e / total).log() for q, e in zip(targets[t, i], exponentials, strict=True)]
                losses.append(torch.stack(terms).sum())
    return torch.stack(losses).mean()
