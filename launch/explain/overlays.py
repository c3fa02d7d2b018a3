"""Maps as pictures: colour over the gray picture, the object's outline, and the point that the map chose."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor, uint16

from ...core.evaluate.counts import Bools, Floats
from ...core.images.images import Images
from ...core.views.view import Evaluation

LEAST_SIDE = 160  # pixels of a picture on the page
OUTLINE, POINT = (0, 220, 255), (255, 0, 255)
COLOURS = "inferno"
# A few places of a gradient are far higher than all others, which would look like nothing: from here on the colour is the brightest.
BRIGHTEST = 99.5
STRENGTH = 0.85


def as_shown(images: Images, row: int, view: Evaluation) -> Floats:
    """Picture `row` as the network sees it, [side, side, 3] in 0..1; of other than three channels, the first one."""
    crop = view.worker(images.read(row))
    pixels = crop.int().numpy() / (65535.0 if crop.dtype == uint16 else 255.0)
    pixels = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def overlaid(
    picture: Floats, found: Tensor, mask: Bools | None = None, point: tuple[int, int] | None = None
) -> Image.Image:
    """The picture in gray under what speaks for the class. found: [side, side]; numbers below 0 are shown as 0."""
    heat = found.clamp(min=0).numpy().astype(np.float64)
    top = np.percentile(heat, BRIGHTEST) or heat.max()
    heat = np.clip(heat / top, 0, 1) if top > 0 else heat
    gray = np.repeat(picture.mean(2, keepdims=True), 3, axis=2)
    colours = np.asarray(mpl.colormaps[COLOURS](heat))[..., :3]
    weight = STRENGTH * heat[..., None] ** 0.6
    return _marked((1 - weight) * gray + weight * colours, mask, point)


def plain_picture(picture: Floats, mask: Bools | None = None) -> Image.Image:
    """The picture itself, with the outline of its object."""
    return _marked(picture, mask, None)


def _marked(pixels: Floats, mask: Bools | None, point: tuple[int, int] | None) -> Image.Image:
    side, factor = len(pixels), -(-LEAST_SIDE // len(pixels))
    large = np.kron(np.rint(255 * pixels).clip(0, 255).astype(np.uint8), np.ones((factor, factor, 1), np.uint8))
    if mask is not None:
        whole = np.kron(mask, np.ones((factor, factor), bool)).astype(bool)
        large[binary_dilation(whole, iterations=2) & ~whole] = OUTLINE
    if point is not None:
        row, column = (factor * at + factor // 2 for at in point)
        arm, last = max(4, side * factor // 24), side * factor
        for thick in (-1, 0, 1):
            across, down = (min(max(0, at + thick), last - 1) for at in (row, column))
            large[across, max(0, column - arm) : column + arm + 1] = POINT
            large[max(0, row - arm) : row + arm + 1, down] = POINT
    return Image.fromarray(large)


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG: the same pixels give the same bytes."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def data_uri(picture: Image.Image, side: int | None = None) -> str:
    """The picture inside a page; of a page's small copies, WebP of `side` pixels."""
    if side is None:
        return f"data:image/png;base64,{base64.b64encode(png_bytes(picture)).decode()}"
    file = io.BytesIO()
    picture.resize((side, side), Image.Resampling.BOX).save(file, "WEBP", quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
