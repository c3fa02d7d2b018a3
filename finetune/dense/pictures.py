"""A picture of some test images, each beside its mask and its prediction, with the colour of every class."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...core.evaluate.counts import Ints
from ...core.evaluate.logreg import LogisticRegression
from ...core.evaluate.patch_probe import predicted_classes
from ...core.evaluate.pictures import save_picture, spread
from ...core.evaluate.segmentation import IGNORED
from ...core.printable import printable
from .dense import DenseProbe

EXAMPLES = 8
SIDE = 144  # pixels of a panel
GAP, LINE, SWATCH = 4, 16, 11
MOST_NAMED = 30
# Okabe & Ito's colours, which colour-blind people can tell apart; more classes get hues that lie far from each other.
FIRST_COLOURS = (
    (60, 60, 60),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
IGNORED_COLOUR = (255, 255, 255)
GOLDEN_RATIO = 0.618034


def class_colours(count: int) -> Ints:
    """The colour of each class, and last that of ignored pixels, int64 [count + 1, 3]: so IGNORED, -1, is an index too."""
    hues = ((k * GOLDEN_RATIO) % 1.0 for k in range(max(0, count - len(FIRST_COLOURS))))
    more = [
        tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.65, 0.55 + 0.4 * (k % 2)))
        for k, hue in enumerate(hues)
    ]
    return np.array([*FIRST_COLOURS[:count], *more, IGNORED_COLOUR], dtype=np.int64)


def save_examples(run: Path, test: str, probe: DenseProbe, model: LogisticRegression, features: Tensor) -> None:
    """Write pictures/dense_TEST.png: rows of image, mask and prediction, two to a row, and a legend.

    features: [M, P, D], the patches of the test images.
    """
    masks, pixels, names = probe.masks[test], probe.pixels(test), probe.table.names
    colours, seen, rows = class_colours(len(names)), set[int](), list[Image.Image]()
    for i in spread(len(masks.paths), EXAMPLES).tolist():
        labels, (found,) = pixels.labels(i), predicted_classes([model], features[i], pixels)
        seen |= set(np.unique(labels).tolist()) | set(np.unique(found).tolist())
        panels = [
            _shown(probe, test, i),
            *(Image.fromarray(colours[part].astype(np.uint8)) for part in (labels, found)),
        ]
        rows.append(_side_by_side(panels))
    named = [(IGNORED, f"{probe.table.ignore} (ignored)"), *enumerate(names)]
    sheet = _with_legend(rows, [(tuple(colours[k].tolist()), printable(name)) for k, name in named if k in seen])
    caption = f"{test}: some images, each with its mask and its prediction by the dense probe, at {probe.side} px"
    save_picture(run, f"dense_{test}", sheet, caption)


def _shown(probe: DenseProbe, test: str, i: int) -> Image.Image:
    """Image i as the network sees it, of 8 bits."""
    masks = probe.masks[test]
    crop = masks.view.worker(masks.images.read(i))
    pixels = crop.float() / torch.iinfo(crop.dtype).max * 255
    pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    return Image.fromarray(pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _side_by_side(panels: list[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (len(panels) * (SIDE + GAP), SIDE + GAP), "white")
    for k, panel in enumerate(panels):
        row.paste(
            panel.resize((SIDE, SIDE), Image.Resampling.NEAREST if k else Image.Resampling.BILINEAR),
            (k * (SIDE + GAP), 0),
        )
    return row


def _with_legend(rows: list[Image.Image], named: list[tuple[tuple[int, ...], str]]) -> Image.Image:
    """The rows, two beside each other, and below them a swatch and a name for each class that is seen."""
    width, height = rows[0].size
    columns = min(2, len(rows))
    left_out = len(named) - MOST_NAMED
    lines = -(-min(len(named), MOST_NAMED) // 3) + (left_out > 0)
    whole = Image.new(
        "RGB", (columns * (width + 2 * GAP), -(-len(rows) // columns) * height + LINE * lines + GAP), "white"
    )
    for k, row in enumerate(rows):
        whole.paste(row, ((k % columns) * (width + 2 * GAP), (k // columns) * height))
    draw, top = ImageDraw.Draw(whole), -(-len(rows) // columns) * height
    share = whole.width // 3
    for k, (colour, name) in enumerate(named[:MOST_NAMED]):
        x, y = (k % 3) * share, top + (k // 3) * LINE
        draw.rectangle((x, y + 2, x + SWATCH, y + 2 + SWATCH), fill=colour, outline=(128, 128, 128))
        _write(draw, (x + SWATCH + 5, y + 1), name)
    if left_out > 0:
        _write(draw, (0, top + (lines - 1) * LINE + 1), f"and {left_out} more classes")
    return whole


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str) -> None:
    """Pillow's own font has Latin letters alone."""
    draw.text(at, text[:24].encode("latin-1", "replace").decode("latin-1"), fill="black")
