"""The pictures of a map of features, made small: one sheet for a run, in the order of the map's points."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image
from torch import Tensor, uint16

from ..images.open import DamagedImage, Images
from .picture_sheet import webp_sheet

THUMBNAIL_SIDE = 40  # pixels of a thumbnail
COLUMNS = 20  # thumbnails in a row of the sheet
SHEET = "map.webp"
_QUALITY = 72  # of WebP
_GRAY = (128, 128, 128)  # in place of a damaged picture


def thumbnail_sheet(parts: Sequence[tuple[Images, Tensor]]) -> tuple[bytes, list[int]]:
    """A WebP picture of square thumbnails, COLUMNS in a row, and of each a number that equal pixels share.

    parts: sets with the rows (int64 [M]) to take of each, in their order. A thumbnail is the middle square of its picture; gray where the
    picture is damaged. Of other than three channels, the first one.
    """
    small = [square_picture(images, int(i), THUMBNAIL_SIDE) for images, rows in parts for i in rows]
    numbers = [int.from_bytes(hashlib.sha256(one.tobytes()).digest()[:6]) for one in small]
    return webp_sheet(small, THUMBNAIL_SIDE, COLUMNS, _QUALITY, _GRAY), numbers


def square_picture(images: Images, i: int, side: int) -> Image.Image:
    """The middle square of picture i in side x side pixels, RGB; gray if it is damaged, of other than three channels the first one."""
    try:
        pixels, _ = images.read_scaled(i, partial(_scale, side))
    except DamagedImage:
        return Image.new("RGB", (side, side), _GRAY)
    eight = (pixels.int() >> 8) if pixels.dtype == uint16 else pixels.int()
    first = eight[:3] if len(eight) == 3 else eight[:1].expand(3, -1, -1)
    edge = min(first.shape[1:])
    top, left = ((extent - edge) // 2 for extent in first.shape[1:])
    square = first[:, top : top + edge, left : left + edge].permute(1, 2, 0).numpy().astype(np.uint8)
    # Few pixels stay squares; many are averaged.
    how = Image.Resampling.NEAREST if edge < side else Image.Resampling.BOX
    return Image.fromarray(square).resize((side, side), how)


def _scale(side: int, height: int, width: int) -> int:
    """By how much a JPEG is decoded smaller: as far as it stays twice as large as it is shown."""
    return next((s for s in (8, 4, 2) if min(height, width) >= 2 * side * s), 1)
