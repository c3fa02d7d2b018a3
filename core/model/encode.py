"""Encoding a batch chunk by chunk: the memory of one chunk, the gradient of the whole batch.

Each chunk's activations are recomputed in the backward pass (non-reentrant activation checkpointing), so a loss that compares all
images still gets the whole batch. Gradient caching (Gao et al. 2021, arXiv:2101.06983) has the same effect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .norm import encode_together, recomputation


def encode(backbone: nn.Module, images: Tensor, chunk: int | None = None) -> Tensor:
    """[V, N, C, H, W] -> [V, N, D], with `chunk` images (all views of each) at once; None: all images."""
    return in_chunks(partial(encode_together, backbone), images, chunk=chunk)


def with_local(backbone: nn.Module, whole: Tensor, local: Tensor | None, chunk: int | None = None) -> Tensor:
    """The features of whole views, [V, N, D], and after them those of local crops, [L, N, C, s, s], if there are any."""
    return whole if local is None else torch.cat([whole, encode(backbone, local, chunk)])


def in_chunks(encoder: Callable[..., Tensor], *batch: Tensor, chunk: int | None) -> Tensor:
    """encoder(*batch) with `chunk` images at once. batch: tensors [V, N, ...]. Returns [V, N, ...]."""
    if chunk is None or chunk >= batch[0].shape[1]:
        return encoder(*batch)
    pieces = zip(*(tensor.split(chunk, dim=1) for tensor in batch), strict=True)
    if not torch.is_grad_enabled():  # a teacher: nothing to recompute
        return torch.cat([encoder(*piece) for piece in pieces], dim=1)
    parts = [checkpoint(encoder, *piece, use_reentrant=False, context_fn=recomputation) for piece in pieces]
    return torch.cat(parts, dim=1)  # pyright: ignore[reportArgumentType, reportCallIssue]
