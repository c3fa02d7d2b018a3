"""Single weights that are 0 and stay so: those of smallest magnitude (Han et al. 2015, arXiv:1506.02626)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .widths import Scope


class WeightMasks(nn.Module):
    """Which weights of a backbone's convolutions and linear layers stay: a buffer for each layer, so that checkpoints hold them.

    total: their number; zeros: how many of them are 0.
    """

    def __init__(self, model: nn.Module, share: float, scope: Scope) -> None:
        """share: of the weights that become 0, those of smallest magnitude among all (global) or in each layer."""
        super().__init__()
        layers = {place: layer for place, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
        self.names = [f"{place}.weight" for place in layers]
        sizes = [layer.weight.detach().abs().flatten().cpu() for layer in layers.values()]
        if scope == "global":
            kept = list(_largest(torch.cat(sizes), share).split([len(size) for size in sizes]))
        else:
            kept = [_largest(size, share) for size in sizes]
        for number, (layer, stays) in enumerate(zip(layers.values(), kept, strict=True)):
            # Bytes, since not every backend sends booleans from process to process.
            self.register_buffer(f"mask{number}", stays.view_as(layer.weight).to(torch.uint8))
        self.total = sum(map(len, sizes))
        self.zeros = self.total - int(sum(stays.sum() for stays in kept))

    def pairs(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Each weight of the model with its mask."""
        own = dict(model.named_parameters())
        return [(own[name], self.get_buffer(f"mask{number}")) for number, name in enumerate(self.names)]

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Set the weights that do not stay to exactly 0."""
        for weight, mask in self.pairs(model):
            weight.masked_fill_(mask == 0, 0.0)

    def hold(self, model: nn.Module) -> None:
        """Let their gradients be 0 too, in all further training: clipping and moments are then those of the other weights alone."""
        for number, name in enumerate(self.names):
            model.get_parameter(name).register_hook(
                lambda gradient, number=number: gradient * self.get_buffer(f"mask{number}")
            )


def _largest(sizes: Tensor, share: float) -> Tensor:
    """bool [N]: all but the smallest; of equals the first go."""
    stays = torch.ones(len(sizes), dtype=torch.bool)
    stays[sizes.argsort(stable=True)[: round(share * len(sizes))]] = False
    return stays
