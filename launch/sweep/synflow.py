"""SynFlow: how much signal passes through a network that has seen no picture, as a score to rank architectures by."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from ...core.errors import UserError
from .point import Untrained

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LAYER_SCALE = "gamma"  # timm's name; it begins at 1e-6 or so, which would hide the block behind it


def synflow_of(point: Untrained) -> float:
    """The sum over all parameters of |theta dR / dtheta|, with |theta| in place of theta (Tanaka et al. 2020, arXiv:2006.05467, eq. 3).

    R is the sum of the outputs for a picture of ones; as a score of whole networks, Abdelfattah et al. 2021, arXiv:2101.08134, section 3.
    In float64, for R grows with each layer. Without normalisation, as there: it would divide the signal by itself. Layer scale is 1.
    Raises UserError where float64 is not enough.
    """
    network = _linear(point.network)
    with torch.enable_grad():
        network(torch.ones(1, point.channels, point.size, point.size, dtype=torch.float64)).sum().backward()
    saliency = [(p.detach() * p.grad).abs().sum() for p in network.parameters() if p.grad is not None]
    score = float(torch.stack(saliency).sum())
    if not math.isfinite(score):
        raise UserError(
            "prefilter: synflow is beyond float64 for a network of this depth; take prefilter: {name: steps}"
        )
    return score


def _linear(network: nn.Module) -> nn.Module:
    """A copy with all weights as their absolute values and without normalisation, in eval mode: no dropout, no drop path."""
    network = copy.deepcopy(network).cpu().double().eval().requires_grad_(True)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _NORMS):
                setattr(module, name, _Passed())
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                tensor.abs_()
            if name.rpartition(".")[2] == _LAYER_SCALE and tensor.ndim == 1:
                tensor.fill_(1.0)
    return network


class _Passed(nn.Module):
    """In the place of a norm: the input, whatever else it takes."""

    def forward(self, images: torch.Tensor, *_: Any) -> torch.Tensor:
        return images
