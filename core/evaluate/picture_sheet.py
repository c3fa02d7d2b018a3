"""Small pictures side by side in one. Imports no torch, so that a page is made without waiting for it."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import (
    Image,
    WebPImagePlugin,  # noqa: F401 - registers itself: to find it, `save` would import the other forty formats as well
)


def webp_sheet(
    pictures: Sequence[Image.Image], side: int, columns: int, quality: int, background: tuple[int, int, int] = (0, 0, 0)
) -> bytes:
    """Pictures of side x side pixels in one, row by row, as WebP."""
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), background)
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % columns * side, k // columns * side))
    out = io.BytesIO()
    sheet.save(out, format="WEBP", quality=quality, method=4)
    return out.getvalue()
