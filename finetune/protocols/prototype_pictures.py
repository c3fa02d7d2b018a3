"""The prototypes of a run as a picture: a row for each class, each prototype as its training picture with the patch marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ...core.evaluate.pictures import save_picture
from ...core.images.images import Images
from ...core.printable import printable
from ...core.views.view import Evaluation

PANEL, BETWEEN, NAMED = 96, 4, 110
MOST_ROWS, MOST_COLUMNS = 40, 12
FRAME = (255, 60, 0)


def save_prototypes(
    run: Path,
    name: str,
    places: Sequence[tuple[int, int, int]],
    classes: Sequence[str],
    images: Images,
    view: Evaluation,
    grid: tuple[int, int],
) -> None:
    """Write pictures/NAME.png. places: (row of `images`, number of the patch, class) of each; grid: rows and columns of patches."""
    rows: dict[int, list[tuple[int, int]]] = {}
    for row, cell, owner in places:
        rows.setdefault(owner, []).append((row, cell))
    shown = list(rows.items())[:MOST_ROWS]
    columns = min(MOST_COLUMNS, max(len(found) for _, found in shown))
    side = PANEL + BETWEEN
    sheet = Image.new("RGB", (NAMED + columns * side, len(shown) * side), "white")
    draw = ImageDraw.Draw(sheet)
    for line, (owner, found) in enumerate(shown):
        text = printable(classes[owner])[:16].encode("latin-1", "replace").decode("latin-1")
        draw.text((4, line * side + PANEL // 2 - 6), text, fill="black")
        for column, (row, cell) in enumerate(found[:columns]):
            sheet.paste(_marked(images, row, cell, view, grid), (NAMED + column * side, line * side))
    caption = (
        f"{name}: the prototypes of each class, each the marked patch of a training picture, the most separating first"
    )
    save_picture(run, name.replace("@", "_"), sheet, caption)


def _marked(images: Images, row: int, cell: int, view: Evaluation, grid: tuple[int, int]) -> Image.Image:
    crop = view.worker(images.read(row))
    pixels = crop.float() / torch.iinfo(crop.dtype).max * 255
    pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    picture = Image.fromarray(pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    picture = picture.resize((PANEL, PANEL), Image.Resampling.BILINEAR)
    top, left = (cell // grid[1]) * PANEL / grid[0], (cell % grid[1]) * PANEL / grid[1]
    frame = (left, top, left + PANEL / grid[1] - 1, top + PANEL / grid[0] - 1)
    ImageDraw.Draw(picture).rectangle(frame, outline=FRAME, width=2)
    return picture
