"""Pooled features and maps of a network, from one forward pass: what feature distillation compares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.features import evaluating
from ...core.evaluate.taps import layout_of
from ...core.model.backbone import Backbone

PlaceGrid = tuple[int, int]


class FeatureMaps:
    """images [N, C, H, W] -> the pooled features [N, D], and the features of each place at some depths, [N, P, D'], row by row.

    levels: number of depths, evenly spaced; the last one is the end of the network, after its last norm. 0: pooled features alone.
    Class token and registers are no places.

    Raises UserError for a network whose places or depths are not known.
    """

    def __init__(self, backbone: Backbone, levels: int) -> None:
        self.backbone, self.levels, self.prefix, self.grid = backbone, levels, 0, (1, 1)
        self.numbers: list[int] = []
        name = backbone.spec["name"]
        if levels:
            layout = layout_of(backbone)
            if layout.grid is None or not layout.head:
                raise UserError(
                    f"method.places: {name} does not say which of its features belong to which place; set it to 0"
                )
            if levels > max(1, layout.levels):
                raise UserError(f"method.depths: {name} has features at {max(1, layout.levels)} depths, got {levels}")
            self.prefix, self.grid = layout.prefix or 0, layout.grid
            # Each k-th part of the depth; the last of them is taken from the end of the network.
            self.numbers = [round(k * layout.levels / levels) - 1 for k in range(1, levels)]
        first = next(backbone.parameters())
        picture = torch.zeros(1, backbone.channels, backbone.size, backbone.size, device=first.device)
        with evaluating(backbone), torch.no_grad():
            pooled, maps = self._maps(picture)
        self.width = pooled.shape[1]
        self.widths = [tokens.shape[2] for tokens, _ in maps]
        self.grids: list[PlaceGrid] = [grid for _, grid in maps]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The pooled features, of `width`, and after them one tensor of each of `widths` and `grids`."""
        pooled, maps = self._maps(images)
        return [pooled, *(tokens for tokens, _ in maps)]

    def _maps(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, PlaceGrid]]]:
        model: Any = self.backbone.model
        if not self.levels:
            return self.backbone(images), []
        found: list[Tensor] = []
        if self.numbers:
            final, found = model.forward_intermediates(images, indices=self.numbers)
        else:
            final = model.forward_features(images)
        maps = [(one.flatten(2).mT, (one.shape[2], one.shape[3])) for one in found]
        tokens = self.backbone.as_tokens(final)
        places = tokens if final.ndim == 4 else tokens[:, self.prefix :]
        return model.forward_head(final), [*maps, (places, self.grid)]


def to_grid(tokens: Tensor, grid: PlaceGrid, to: PlaceGrid) -> Tensor:
    """The mean of the places under each place of a smaller grid, by area: [N, h * w, D] -> [N, h' * w', D].

    As matrix products, whose gradients are the same in every run on a GPU, which those of torch's adaptive pooling are not.
    """
    if grid == to:
        return tokens
    rows, columns = (_shares(a, b).to(tokens) for a, b in zip(grid, to, strict=True))
    maps = tokens.unflatten(1, grid)
    return torch.einsum("ih,jw,nhwd->nijd", rows, columns, maps).flatten(1, 2)


def _shares(size: int, to: int) -> Tensor:
    """[to, size]: the part of each of `to` equal stretches that lies in each of `size` ones; rows sum to 1."""
    edges = torch.arange(size + 1, dtype=torch.float64) / size
    ends = torch.arange(to + 1, dtype=torch.float64) / to
    low = torch.maximum(edges[:-1], ends[:-1, None])
    high = torch.minimum(edges[1:], ends[1:, None])
    return (high - low).clamp(min=0.0) * to
