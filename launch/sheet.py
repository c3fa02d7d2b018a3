"""The contact sheet of `rootstock data`: where it goes, and thumbnails of a set, one row for each class or domain."""

import os
import re
import stat
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.errors import UserError
from ..core.files import expanded
from ..core.images.cache import cache_folder, entry_name
from ..core.images.open import Images
from ..core.images.sets import refuse_inside
from ..core.images.several import has_several
from ..core.printable import printable

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
THUMBNAIL, COLUMNS, ROWS, MARGIN, CAPTION = 64, 10, 20, 4, 110
"""Side of a thumbnail in pixels, images per row, most rows, margin and width of a row's caption in pixels."""


def place_of_sheet(images: Images, out: Path | None) -> Path:
    """The file that the sheet goes to: `out`, or one in the cache.

    Raises UserError if it would lie in the set, if nothing can be written there, or if its ending is no picture's.
    """
    if out is None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", images.domain_names[0]).strip("._")[:40] or "set"
        return cache_folder("sheets") / f"{name}-{entry_name(images.uri, os.getcwd())[:8]}.png"
    out = expanded(out)
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {out}: a contact sheet is a picture; expected a name that ends in {', '.join(ENDINGS)}")
    if not os.path.isdir(out.parent):
        raise UserError(f"--out {out}: there is no folder {out.parent}; create it, or choose another place")
    try:
        regular, there = stat.S_ISREG(os.stat(out).st_mode), out
    except FileNotFoundError:
        regular, there = True, out.parent
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from None
    if not regular:
        raise UserError(f"--out {out}: this is there already, and no file that can be replaced; choose another name")
    if not os.access(there, os.W_OK):
        raise UserError(f"--out {out}: cannot be written; choose another place")
    refuse_inside(images, out, "--out")
    return out


def save_sheet_to(sheet: Image.Image, place: Path) -> str:
    """Save a sheet; returns the words that say where. A cache that cannot be written costs only the sheet."""
    try:
        if place.is_relative_to(cache_folder("sheets")):
            place.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(place)
    except OSError as error:
        if not place.is_relative_to(cache_folder("sheets")):
            raise UserError(
                f"--out {place}: cannot be written ({error.strerror or error}); choose another place"
            ) from None
        return f"no contact sheet: {place} cannot be written ({error.strerror or error}); name a place by --out FILE"
    return f"contact sheet: {place}"


def contact_sheet(images: Images, damaged: set[int]) -> Image.Image:
    """A sheet of thumbnails: one row per class, or per domain if there are several or no classes; evenly spaced images of each."""
    by_domain = len(images.domain_names) > 1 or images.labels is None or images.classes is None
    index = images.domains if by_domain or images.labels is None else images.labels
    names = images.domain_names if by_domain else images.classes or ()
    several = has_several(index)
    here = ((index[:, k] > 0) if several else (index == k) for k in range(len(names)))
    groups = [(name, mine.nonzero().flatten().tolist()) for name, mine in zip(names, here, strict=True)]
    if len(groups) == 1:  # one row would waste the sheet
        name, members = groups[0]
        step = max(1, len(members) // (COLUMNS * COLUMNS))
        shown = members[::step][: COLUMNS * COLUMNS]
        rows = [("" if r else name, shown[r : r + COLUMNS]) for r in range(0, len(shown), COLUMNS)]
    else:
        rows = [(name, members[:: max(1, len(members) // COLUMNS)][:COLUMNS]) for name, members in groups[:ROWS]]
    pitch = THUMBNAIL + MARGIN
    sheet = Image.new("RGB", (CAPTION + COLUMNS * pitch + MARGIN, len(rows) * pitch + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for r, (name, members) in enumerate(rows):
        draw.text((MARGIN, MARGIN + r * pitch + THUMBNAIL // 2), shortened(name), "black", font, anchor="lm")
        for c, i in enumerate(members):
            left, top = CAPTION + c * pitch, MARGIN + r * pitch
            picture = cross() if i in damaged else thumbnail(images.read(i))
            sheet.paste(picture, (left + (THUMBNAIL - picture.width) // 2, top + (THUMBNAIL - picture.height) // 2))
    return sheet


def shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 15 else name[:14] + "…"


def thumbnail(image: Tensor) -> Image.Image:
    """uint8 or uint16 [C, H, W] as a small RGB image; the first channel only, unless there are three."""
    first = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    eight = (first.to(torch.int64) >> 8).to(torch.uint8) if first.dtype == torch.uint16 else first
    picture = Image.fromarray(eight.permute(1, 2, 0).contiguous().numpy())
    scale = THUMBNAIL / max(picture.size)
    side = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Small images are enlarged without interpolation, to show the pixels that the network sees.
    return picture.resize(side, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def cross() -> Image.Image:
    """The placeholder for a damaged image."""
    picture = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "#dddddd")
    draw = ImageDraw.Draw(picture)
    for line in ((0, 0, THUMBNAIL, THUMBNAIL), (0, THUMBNAIL, THUMBNAIL, 0)):
        draw.line(line, fill="#c00000", width=3)
    return picture
