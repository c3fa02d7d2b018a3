"""Colour histograms as features: which colours an image has, and nearly nothing of where."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from .inputs import at_least, check_shape

_LARGEST = 65_536  # numbers an image


class ColourHistogram(nn.Module):
    """The joint histogram of an image's colours (Swain & Ballard 1991, "Color indexing"), [N, channels, size, size] in 0..1 -> [N, D].

    Each channel has `bins` intervals of equal width, so a colour falls into one of bins^channels. In each of grid x grid equal parts of the
    image the shares of the bins are taken, divided by the number of parts, and square-rooted (Hellinger), so that each image has length 1
    and a dot product compares shares as the Bhattacharyya coefficient does. D = grid^2 * bins^channels, laid out as part (row by row), bin
    (the first channel slowest). size: side of the images in pixels.

    bins: Intervals of each channel, 2 or more; 8 gives 512 colours.
    grid: Parts of a side, which divides the image's side; 1 is a histogram of the whole image.

    Raises UserError for numbers out of range, and for more than 65,536 features.
    """

    def __init__(self, size: int, channels: int = 3, *, bins: int = 8, grid: int = 1) -> None:
        super().__init__()
        at_least("colour", "bins", bins, 2, "8")
        at_least("colour", "grid", grid, 1, "1")
        if size % grid:
            fitting = ", ".join(str(parts) for parts in range(1, size + 1) if not size % parts)
            raise UserError(
                f"backbone.args.grid: images of {size} px have no {grid} equal parts a side; give grid as {fitting}"
            )
        self.shape, self.bins, self.grid = (channels, size, size), bins, grid
        self.feature_dim = grid**2 * bins**channels
        if self.feature_dim > _LARGEST:
            raise UserError(
                f"backbone.args.bins: {bins} bins of {channels} channels in {grid} x {grid} parts are {self.feature_dim:,} features an "
                f"image, and at most {_LARGEST:,} are allowed; give fewer bins, or a smaller grid"
            )

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images, self.shape)
        # A level on the border of two intervals, such as 32/255 of 8 bins, must not fall by rounding.
        place = (images.double() * 255 * self.bins / 256 + 1e-9).floor().long().clamp(0, self.bins - 1)
        colour = torch.zeros_like(place[:, 0])
        for channel in range(self.shape[0]):
            colour = colour * self.bins + place[:, channel]
        return shares_of_cells(colour, self.bins ** self.shape[0], self.grid).sqrt()


def shares_of_cells(labels: Tensor, kinds: int, grid: int) -> Tensor:
    """The share of each label in each of grid x grid parts, over the number of parts: int64 [N, H, W] -> [N, grid^2 * kinds], sum 1."""
    n, height, width = labels.shape
    rows = torch.arange(grid, device=labels.device).repeat_interleave(height // grid)
    columns = torch.arange(grid, device=labels.device).repeat_interleave(width // grid)
    part = rows[:, None] * grid + columns
    found = torch.zeros(n, grid**2 * kinds, device=labels.device)
    place = (part * kinds + labels).flatten(1)
    return found.scatter_add_(1, place, found.new_ones(()).expand_as(place)) / (height * width)
