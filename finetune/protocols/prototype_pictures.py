"""The prototypes of a run as pictures: a line for each class, each prototype as its training picture with the patch marked."""

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
MOST_LINES, MOST_COLUMNS = (
    40,
    12,
)  # of a sheet; a class with more prototypes goes on in the next line, and lines in the next sheet
FRAME = (255, 60, 0)

Line = tuple[
    str, list[tuple[int, int]]
]  # what is written before it, and (row, number of the patch) of each of its prototypes


def save_prototypes(
    run: Path,
    name: str,
    places: Sequence[tuple[int, int, int]],
    classes: Sequence[str],
    images: Images,
    view: Evaluation,
    grid: tuple[int, int],
) -> None:
    """Write pictures/NAME.png, and NAME-2.png and so on where one sheet does not hold all prototypes.

    places: (row of `images`, number of the patch, class) of each prototype; grid: rows and columns of patches.
    """
    lines = _lines(places, classes)
    sheets = [lines[start : start + MOST_LINES] for start in range(0, len(lines), MOST_LINES)]
    what = (
        f"{name}: the prototypes of each class, each the marked patch of a training picture, the most separating first"
    )
    for number, shown in enumerate(sheets, 1):
        which = f"; sheet {number} of {len(sheets)}" if len(sheets) > 1 else ""
        file = name.replace("@", "_") + (f"-{number}" if number > 1 else "")
        save_picture(run, file, _sheet(shown, images, view, grid), what + which)


def _lines(places: Sequence[tuple[int, int, int]], classes: Sequence[str]) -> list[Line]:
    rows: dict[int, list[tuple[int, int]]] = {}
    for row, cell, owner in places:
        rows.setdefault(owner, []).append((row, cell))
    return [
        (printable(classes[owner])[:16], found[start : start + MOST_COLUMNS])
        for owner, found in rows.items()
        for start in range(0, len(found), MOST_COLUMNS)
    ]


def _sheet(lines: Sequence[Line], images: Images, view: Evaluation, grid: tuple[int, int]) -> Image.Image:
    side = PANEL + BETWEEN
    sheet = Image.new("RGB", (NAMED + max(len(found) for _, found in lines) * side, len(lines) * side), "white")
    draw = ImageDraw.Draw(sheet)
    for line, (name, found) in enumerate(lines):
        text = name.encode("latin-1", "replace").decode("latin-1")
        draw.text((4, line * side + PANEL // 2 - 6), text, fill="black")
        for column, (row, cell) in enumerate(found):
            sheet.paste(_marked(images, row, cell, view, grid), (NAMED + column * side, line * side))
    return sheet


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
