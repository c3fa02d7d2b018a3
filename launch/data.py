"""`rootstock data`: describe and check a set of images before training on it.

Every image is read once, so that damage is found now and not during the training.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ..core.images.open import DamagedImage, Images, open_with_splits
from ..core.images.sources.files import printable

SHEET = Path("contact-sheet.png")
THUMBNAIL, COLUMNS, ROWS, MARGIN, CAPTION = 64, 10, 20, 4, 110
"""The contact sheet: side of a thumbnail in pixels, images per row, most rows, margin and width of a row's caption in pixels."""

LISTED = 20
READERS = 4


def describe_set(uri: str | Sequence[str], out: Path | None = None) -> int:
    """Print a summary of `uri` (or of the union of several) and save a contact sheet to `out` (contact-sheet.png by default).

    Returns the exit code: 0, or 1 if an image is damaged. Raises UserError if the URI cannot be opened.
    """
    console = Console(highlight=False)
    images, _ = open_with_splits(uri)
    shapes, damaged = check_pictures(images, console)
    print_summary(console, images, shapes)
    if images.labels is not None and images.classes is not None:
        print_counts(console, "class", images.classes, images.labels)
    if len(images.domain_names) > 1:
        print_counts(console, "domain", images.domain_names, images.domains)
    out = out or SHEET
    contact_sheet(images, {i for i, _ in damaged}).save(out)
    console.print(f"contact sheet: {escape(str(out))}", soft_wrap=True)
    for _, sentence in damaged[:LISTED]:
        console.print(f"[red]damaged[/] {escape(sentence)}", soft_wrap=True)
    if len(damaged) > LISTED:
        console.print(f"and {len(damaged) - LISTED} more")
    console.print(f"[red]{len(damaged)} damaged[/]" if damaged else "no picture is damaged")
    return 1 if damaged else 0


def check_pictures(images: Images, console: Console) -> tuple[Counter[tuple[int, ...]], list[tuple[int, str]]]:
    """Read every image. Returns how often each shape (C, H, W) occurs, and (index, message) of the damaged images."""

    def read_shape(i: int) -> tuple[int, ...] | str:
        try:
            return tuple(images.read(i).shape)
        except DamagedImage as error:
            return str(error)

    shapes: Counter[tuple[int, ...]] = Counter()
    damaged: list[tuple[int, str]] = []
    with ThreadPoolExecutor(READERS) as readers:
        results = chunked(readers, read_shape, len(images))
        quiet = not console.is_terminal
        for i, found in enumerate(
            track(results, "reading every picture", total=len(images), console=console, disable=quiet, transient=True)
        ):
            if isinstance(found, str):
                damaged.append((i, found))
            else:
                shapes[found] += 1
    return shapes, damaged


def chunked(
    readers: ThreadPoolExecutor, look: Callable[[int], tuple[int, ...] | str], count: int, size: int = 1024
) -> Iterator[tuple[int, ...] | str]:
    """The results of `look(0)` to `look(count - 1)` in order; in chunks, so that a large set does not queue millions of calls."""
    for start in range(0, count, size):
        yield from readers.map(look, range(start, min(start + size, count)))


def print_summary(console: Console, images: Images, shapes: Counter[tuple[int, ...]] | None = None) -> None:
    """Print count, copies, fingerprint and split hash, and the sizes if `shapes` (number of images by shape) is given."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    identities = len(images.keys().unique())
    table.add_row("set", escape(images.uri))
    table.add_row(
        "pictures",
        f"{len(images):,}"
        + (f", {identities:,} different (copies and blends count once)" if identities < len(images) else ""),
    )
    table.add_row("labels", "none" if images.labels is None else f"{len(images.classes or ())} classes")
    if shapes is not None:
        add_sizes(table, shapes)
    table.add_row("fingerprint", images.fingerprint())
    table.add_row("split hash", images.split_hash())
    console.print(table)


def add_sizes(table: Table, shapes: Counter[tuple[int, ...]]) -> None:
    """Add rows about channels, widths and heights. shapes: number of images by (C, H, W)."""
    heights = sorted(shape[1] for shape in shapes.elements())
    widths = sorted(shape[2] for shape in shapes.elements())
    table.add_row("channels", ", ".join(str(channels) for channels in sorted({shape[0] for shape in shapes})))
    if len(shapes) == 1:
        table.add_row("size", f"all {widths[0]} x {heights[0]} (width x height)")
    elif shapes:
        middle = len(widths) // 2
        table.add_row("width", f"{widths[0]} to {widths[-1]}, median {widths[middle]}")
        table.add_row("height", f"{heights[0]} to {heights[-1]}, median {heights[middle]}")


def print_counts(console: Console, kind: str, names: tuple[str, ...], index: Tensor) -> None:
    """Print how many images each class or domain has; those after the first LISTED in one line."""
    counts = torch.bincount(index, minlength=len(names)).tolist()
    table = Table(kind, "pictures", "share", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in list(zip(names, counts, strict=True))[:LISTED]:
        table.add_row(escape(printable(name)), f"{count:,}", f"{count / max(len(index), 1):.1%}")
    console.print(table)
    if len(names) > LISTED:
        console.print(f"and {len(names) - LISTED} more, of {min(counts):,} to {max(counts):,} pictures")


def contact_sheet(images: Images, damaged: set[int]) -> Image.Image:
    """A sheet of thumbnails: one row per class, or per domain if there are several or no classes; evenly spaced images of each."""
    by_domain = len(images.domain_names) > 1 or images.labels is None or images.classes is None
    index = images.domains if by_domain or images.labels is None else images.labels
    names = images.domain_names if by_domain else images.classes or ()
    groups = [(name, (index == k).nonzero().flatten().tolist()) for k, name in enumerate(names)]
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
