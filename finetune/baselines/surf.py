"""Dense, upright SURF as a bag of visual words."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, unfold

from ...core.errors import UserError
from .inputs import check_shape, to_gray, to_levels
from .words import DenseDescriptors, VisualWords

_WIDTH = 64  # 4 x 4 cells of 4 sums
SIDE, CELL = 20, 5  # samples of a window and of a cell
# Standard deviation of the window's Gaussian weights, in units of the scale (Bay et al. 2008, section 4.2).
SIGMA = 3.3
LARGEST_SCALE = 16
_NUMBERS_AT_ONCE = 1 << 24  # of samples in memory


class DenseSurf(DenseDescriptors):
    """Upright SURF (U-SURF; Bay, Ess, Tuytelaars & Van Gool 2008, CVIU 110:346) at a regular grid.

    [N, channels, size, size] in 0..1 -> [N, places, 64].

    Around a place, 20 x 20 samples s pixels apart are taken of the responses dx and dy of Haar wavelets of side 2 s to the gray image,
    whose border is repeated, and weighted by a Gaussian of 3.3 s. Each cell of 5 x 5 samples gives the sums of dx, dy, |dx| and |dy|; all
    64 are scaled to length 1, and a flat place stays 0. Laid out as cell row, cell column, sum. scales: s, in whole pixels.

    A sample's wavelet covers the pixels from s // 2 before its place to 2 s after that, so samples lie evenly around the middle of a
    place's pixel where s is odd, and around its upper left corner where s is even.
    """

    weights: Tensor

    def __init__(self, size: int, channels: int, step: int | None, scales: tuple[int, ...]) -> None:
        super().__init__(size, channels, step, len(scales), "surf")
        if not scales or not all(1 <= scale <= LARGEST_SCALE for scale in scales):
            raise UserError(
                f"backbone.args.scales: surf needs one or more whole numbers from 1 to {LARGEST_SCALE}, got {list(scales)}"
            )
        self.scales = scales
        offset = torch.arange(SIDE) - (SIDE - 1) / 2
        one = torch.exp(-offset.square() / (2 * SIGMA**2))
        self.register_buffer("weights", one[:, None] * one, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images, self.shape)
        # Whole levels: sums over a flat place are 0 without rounding.
        gray = to_levels(to_gray(images.float())).float()
        step = max(1, _NUMBERS_AT_ONCE // (2 * SIDE**2 * len(self.rows) ** 2))
        found = [torch.cat([self._at_scale(part, s) for part in gray.split(step)]) for s in self.scales]
        return torch.cat(found, 1)

    def _at_scale(self, gray: Tensor, scale: int) -> Tensor:
        """[N, 1, H, W] -> [N, places, 64]."""
        haar = gray.new_ones(2, 1, 2 * scale, 2 * scale)
        haar[0, :, :, :scale], haar[1, :, :scale] = -1, -1
        # The first sample's wavelet begins so many pixels before a place, and the last one's ends so many after it.
        before = SIDE // 2 * scale + scale // 2
        after = SIDE * scale - before + scale
        beyond = max(0, before - self.rows[0]), max(0, after + self.rows[-1] + 1 - self.size)
        padded = pad(gray, (*beyond, *beyond), mode="replicate")
        responses = conv2d(padded, haar)
        first = self.rows[0] + beyond[0] - before
        windows = unfold(responses[:, :, first:, first:], SIDE, dilation=scale, stride=self.step)
        columns = (responses.shape[3] - first - scale * (SIDE - 1) - 1) // self.step + 1
        count = len(self.rows)
        windows = (
            windows.view(len(gray), 2, SIDE, SIDE, columns, columns)[..., :count, :count]
            * self.weights[..., None, None]
        )
        cells = windows.view(len(gray), 2, SIDE // CELL, CELL, SIDE // CELL, CELL, count, count)
        sums = torch.cat(
            [cells.sum((3, 5)), cells.abs().sum((3, 5))], 1
        )  # [N, 4, rows, columns, place rows, place columns]
        flat = sums.permute(0, 4, 5, 2, 3, 1).reshape(len(gray), count**2, _WIDTH)
        return flat / flat.norm(dim=2, keepdim=True).clamp(min=1e-6)


class Surf(VisualWords):
    """A bag of words of dense, upright SURF; see `VisualWords` and `DenseSurf`.

    words: Number of visual words, 2 or more.
    step: Pixels from one place to the next; null is an eighth of the image's side, at most 8.
    scales: Pixels from one sample to the next, one number for each scale; null is 1, and from 64 px on 1 and 2. A descriptor covers 20
        samples.
    levels: Levels of the spatial pyramid; 1 is a plain bag, without places.

    Raises UserError for numbers out of range.
    """

    def __init__(
        self,
        size: int,
        channels: int = 3,
        *,
        words: int = 512,
        step: int | None = None,
        scales: list[int] | None = None,
        levels: int = 1,
    ) -> None:
        usual = (1,) if size < 64 else (1, 2)
        describe = DenseSurf(size, channels, step, usual if scales is None else tuple(scales))
        super().__init__("surf", describe, describe.places, _WIDTH, words, levels)
