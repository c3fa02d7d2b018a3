"""Which images of a batch share BatchNorm statistics where it holds two domains: `method.batchnorm` of adaptation.

joint   one forward of all images: the statistics of a batch are of both domains (tllib)
apart   one forward a domain: each has the batch statistics of its own images, and the running ones are shared (the authors of CDAN
        and MCD, pytorch-adapt). The originals move the running statistics once a forward; here they move once a step, to the mean
        over both domains
own     each domain has its own statistics and its own scale and shift (DSBN, Chang et al. 2019, arXiv:1906.03950). The layers of
        the network are the target's: they are exported and tested. Those of the source are used in training alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from .encode import in_chunks
from .norm import SOURCE_LAYER, convert_batch_norms, encode_together, of_source

BatchNorms = Literal["joint", "apart", "own"]
SOURCE, TARGET = 0, 1


def encode_domains(
    network: nn.Module, rows: Tensor, batchnorm: BatchNorms, domains: Sequence[int], chunk: int | None = None
) -> Tensor:
    """[V, N, ...] -> [V, N, D]. domains: of each of the V rows, SOURCE or TARGET. chunk: images (all rows of each) at once."""
    return in_chunks(partial(_encode, network, batchnorm=batchnorm, domains=tuple(domains)), rows, chunk=chunk)


def _encode(network: nn.Module, rows: Tensor, batchnorm: BatchNorms, domains: tuple[int, ...]) -> Tensor:
    if batchnorm == "joint":
        return encode_together(network, rows)
    found: dict[int, Tensor] = {}
    for domain in dict.fromkeys(domains):
        chosen = [row for row, of in enumerate(domains) if of == domain]
        with of_source(batchnorm == "own" and domain == SOURCE):
            found |= dict(zip(chosen, encode_together(network, rows[chosen]), strict=True))
    return torch.stack([found[row] for row in range(len(domains))])


def give_own(network: nn.Module) -> None:
    """Give every BatchNorm inside `network` a second one for the source, equal at first. Raises UserError if there is none."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        raise UserError("method.batchnorm: own needs a network with BatchNorm, and this one has none; leave it out")
    for layer in layers:
        twin = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        twin.load_state_dict(layer.state_dict())
        for own, of in zip(twin.parameters(), layer.parameters(), strict=True):
            own.requires_grad = of.requires_grad
        layer.add_module(SOURCE_LAYER, twin.to(next(layer.parameters(), torch.empty(0)).device))
    convert_batch_norms(network, "local")


def without_source_layers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the layers that BatchNorms have for the source's images: what is exported."""
    return {name: tensor for name, tensor in state.items() if SOURCE_LAYER not in name.split(".")}


def for_both(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An exported state dict for a network whose BatchNorms may have a layer for the source: it begins as the target's."""
    twins = {
        name: name.replace(f".{SOURCE_LAYER}.", ".") for name in network.state_dict() if f".{SOURCE_LAYER}." in name
    }
    return {**state, **{name: state[of] for name, of in twins.items() if of in state}}
