"""Dense SIFT as a bag of visual words: upright descriptors at fixed places and scales, by OpenCV."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...core.errors import UserError
from .inputs import by_opencv, check_shape, opencv
from .words import DenseDescriptors, VisualWords

_WIDTH = 128  # 4 x 4 cells of 8 directions
# A keypoint of OpenCV's diameter d has cells of 3 d / 2 pixels (Lowe 2004, section 6.1, where d is 2 sigma).
CELLS_A_DIAMETER = 1.5
LARGEST_CELL = 64


class DenseSift(DenseDescriptors):
    """SIFT descriptors (Lowe 2004, IJCV 60:91) at a regular grid, upright, [N, channels, size, size] in 0..1 -> [N, places, 128].

    OpenCV's, on the gray image in whole levels. Each is divided by its sum and square-rooted (RootSIFT, Arandjelovic & Zisserman 2012);
    that of a flat place is 0. cells: sides of a descriptor's 4 x 4 cells, in pixels.
    """

    def __init__(self, size: int, channels: int, step: int | None, cells: tuple[float, ...]) -> None:
        super().__init__(size, channels, step, len(cells), "sift")
        if not cells or not all(1 <= cell <= LARGEST_CELL for cell in cells):
            raise UserError(
                f"backbone.args.cells: sift needs one or more sides of 1 to {LARGEST_CELL} px, got {list(cells)}"
            )
        self.cv2 = opencv("sift")
        self.sift = self.cv2.SIFT_create()
        self.points = [
            self.cv2.KeyPoint(float(column), float(row), cell / CELLS_A_DIAMETER, 0.0)
            for cell in cells
            for row in self.rows
            for column in self.rows
        ]

    def extra_repr(self) -> str:
        return f"OpenCV {self.cv2.__version__}"  # a part of the key of stored features

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images, self.shape)
        found = by_opencv(self.cv2, images, self._of_one)
        return (found / found.sum(2, keepdim=True).clamp(min=1e-12)).sqrt()

    def _of_one(self, image: np.ndarray) -> np.ndarray:
        kept, found = self.sift.compute(image, self.points)
        if len(kept) != len(self.points):
            raise RuntimeError(f"OpenCV gave {len(kept)} descriptors at {len(self.points)} places")
        return found


class Sift(VisualWords):
    """A bag of words of dense, upright SIFT; see `VisualWords` and `DenseSift`.

    words: Number of visual words, 2 or more.
    step: Pixels from one place to the next; null is an eighth of the image's side, at most 8.
    cells: Sides of a descriptor's 4 x 4 cells in pixels, one for each scale; null is a sixteenth and an eighth of the image's side, at most
        4 and 8.
    levels: Levels of the spatial pyramid; 1 is a plain bag, without places.

    Raises UserError for numbers out of range, and where OpenCV is missing.
    """

    def __init__(
        self,
        size: int,
        channels: int = 3,
        *,
        words: int = 512,
        step: int | None = None,
        cells: list[float] | None = None,
        levels: int = 1,
    ) -> None:
        usual = (min(4.0, max(1.0, size / 16)), min(8.0, max(2.0, size / 8)))
        describe = DenseSift(size, channels, step, usual if cells is None else tuple(cells))
        super().__init__("sift", describe, describe.places, _WIDTH, words, levels)
