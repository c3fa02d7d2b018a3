"""Maps of edges as features: how strong (Sobel) or how many (Canny) edges are in each cell of an image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad

from ...core.errors import UserError
from .inputs import at_least, by_opencv, check_shape, opencv, to_gray, whole_cells


class SobelEdges(nn.Module):
    """The strength of edges by Sobel's operator, [N, channels, size, size] in 0..1 -> [N, D].

    The gray image, its border repeated, is filtered by [1, 2, 1] x [-1, 0, 1] / 4 both ways, in levels of 0..1. The features are the means
    of |dx| and of |dy| over square cells: D = 2 (size / cell)^2, laid out as direction (dx first), cell row, cell column. size: side of the
    images in pixels.

    cell: Side of a cell in pixels, which divides the image's side; null is the largest such side up to a sixteenth, 2 at 32 px. 1 keeps
        the whole map.

    Raises UserError for a cell that does not fit.
    """

    def __init__(self, size: int, channels: int = 3, *, cell: int | None = None) -> None:
        super().__init__()
        self.shape, self.cell = (channels, size, size), whole_cells("sobel", "cell", size, cell, 16)
        self.feature_dim = 2 * (size // self.cell) ** 2

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images, self.shape)
        return avg_pool2d(sobel_gradient(to_gray(images.float())).abs(), self.cell).flatten(1)


def sobel_gradient(gray: Tensor) -> Tensor:
    """dx and dy of [N, 1, H, W], [N, 2, H, W]: brightness a pixel, times 2 (Sobel & Feldman 1968)."""
    smooth, slope = gray.new_tensor([1.0, 2.0, 1.0]) / 4, gray.new_tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
    return conv2d(pad(gray, (1, 1, 1, 1), mode="replicate"), kernels)


class CannyEdges(nn.Module):
    """The share of edge pixels by Canny's detector (Canny 1986), [N, channels, size, size] in 0..1 -> [N, D].

    OpenCV's, on the gray image in whole levels, after a Gaussian blur: the gradient's length sqrt(dx^2 + dy^2) by Sobel, thinned to its
    ridges; ridges above `high` are edges, and those above `low` that touch them. The features are the shares of edge pixels of square
    cells: D = (size / cell)^2, row by row. size: side of the images in pixels.

    low: Length of the gradient (levels of 0..255, Sobel's sums without a factor) above which a pixel goes on with an edge.
    high: Length of the gradient above which a pixel begins an edge, at least low.
    sigma: Standard deviation of the blur in pixels, 0 or more; 0 is none. 1 is usual for pictures above 100 px.
    cell: Side of a cell in pixels, which divides the image's side; null is the largest such side up to a sixteenth, 2 at 32 px. 1 keeps
        the whole map.

    Raises UserError for numbers out of range, and where OpenCV is missing.
    """

    def __init__(
        self,
        size: int,
        channels: int = 3,
        *,
        low: float = 100.0,
        high: float = 200.0,
        sigma: float = 0.0,
        cell: int | None = None,
    ) -> None:
        super().__init__()
        at_least("canny", "low", low, 0, "100")
        at_least("canny", "sigma", sigma, 0, "0 or 1")
        if not high >= low:
            raise UserError(
                f"backbone.args.high: canny begins edges above high = {high}, below low = {low}; give twice low"
            )
        self.shape, self.cell = (channels, size, size), whole_cells("canny", "cell", size, cell, 16)
        self.low, self.high, self.sigma, self.cv2 = low, high, sigma, opencv("canny")
        self.feature_dim = (size // self.cell) ** 2

    def extra_repr(self) -> str:
        return f"OpenCV {self.cv2.__version__}"  # a part of the key of stored features

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images, self.shape)
        edges = by_opencv(self.cv2, images, self._edges)
        return avg_pool2d((edges > 0).float()[:, None], self.cell).flatten(1)

    def _edges(self, image: np.ndarray) -> np.ndarray:
        if self.sigma:
            image = self.cv2.GaussianBlur(image, (0, 0), self.sigma)
        return self.cv2.Canny(image, self.low, self.high, L2gradient=True)
