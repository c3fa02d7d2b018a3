"""`rootstock data`: describe and check a set of images before training on it.

Every image is read once, so that damage is found now and not during the training.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from ..core.images.notes import Note
from ..core.images.open import Images, open_with_splits
from ..core.images.several import has_several
from ..core.images.survey import notes_of, survey
from ..core.printable import printable
from .following import command
from .sheet import contact_sheet, place_of_sheet, save_sheet_to

LISTED = 20


def describe_set(uri: str | Sequence[str], out: Path | None = None, anew: bool = False) -> int:
    """Print a summary of `uri` (or of the union of several) and save a contact sheet to `out` (in the cache by default).

    anew: look at every picture, even if what was found the last time still holds by the files' sizes and times of change.
    Returns the exit code: 0, or 1 if an image is damaged. Raises UserError if the URI cannot be opened.
    """
    console = Console(highlight=False)
    images, _ = open_with_splits(uri)
    place = place_of_sheet(images, out)
    found = survey(images, lambda numbers, count: shown_progress(console, numbers, count), anew)
    print_summary(console, images, found.shapes)
    if images.labels is not None and images.classes is not None:
        print_counts(console, "class", images.classes, images.labels)
    if images.labels is not None and has_several(images.labels):
        print_counts(console, "classes a picture", *classes_a_picture(images.labels))
    if len(images.domain_names) > 1:
        print_counts(console, "domain", images.domain_names, images.domains)
    said = save_sheet_to(contact_sheet(images, {i for i, _ in found.damaged}), place)
    console.print(escape(printable(said)), soft_wrap=True)
    if found.remembered:
        console.print(
            "no file has changed its size or time since the last check, which is shown; --anew reads all again"
        )
    for _, sentence in found.damaged[:LISTED]:
        console.print(f"[red]damaged[/] {escape(printable(sentence))}", soft_wrap=True)
    if len(found.damaged) > LISTED:
        console.print(f"and {len(found.damaged) - LISTED} more")
    console.print(f"[red]{len(found.damaged)} damaged[/]" if found.damaged else "no picture is damaged")
    print_notes(console, [*images.notes, *notes_of(images, found.tally)])
    if not found.damaged:
        console.print(escape(printable(f"next: {_after(images, uri)}")), soft_wrap=True)
    return 1 if found.damaged else 0


def _after(images: Images, uri: str | Sequence[str]) -> str:
    """A pretraining on the set, with a kNN classifier of its labels where it has some."""
    labelled = images.labels is not None and images.classes is not None and not has_several(images.labels)
    knn = {"evaluate__knn": {}} if labelled else {}
    return command("pretrain", "small", data__train=uri if isinstance(uri, str) or len(uri) > 1 else uri[0], **knn)


def shown_progress(console: Console, numbers: Iterable[int], count: int) -> Iterable[int]:
    """The same numbers, with a bar on a terminal."""
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("reading every picture", total=count)
        for number in numbers:
            progress.update(bar, completed=number)
            yield number


def print_notes(console: Console, notes: Sequence[Note]) -> None:
    """The table of what a set holds beside the pictures that are read."""
    if not notes:
        console.print("nothing was passed over")
        return
    table = Table("number", "passed over, or read in part", "for example", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    table.columns[1].overflow = table.columns[2].overflow = "fold"
    for note in notes:
        table.add_row(f"{note.number:,}", escape(note.what), escape(printable(note.example)))
    console.print(table)


def print_summary(console: Console, images: Images, shapes: Counter[tuple[int, ...]] | None = None) -> None:
    """Print count, copies, fingerprint and split hash, and the sizes if `shapes` (number of images by shape) is given."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    identities = len(images.keys().unique())
    table.add_row("set", escape(printable(images.uri)))
    table.add_row(
        "pictures",
        f"{len(images):,}"
        + (f", {identities:,} different (copies and blends count once)" if identities < len(images) else ""),
    )
    number = len(images.classes or ())
    kind = ", any number of them a picture" if has_several(images.labels) else ""
    table.add_row("labels", "none" if images.labels is None else f"{number} class{'' if number == 1 else 'es'}{kind}")
    if images.groups is not None:
        sizes = images.units().unique(return_counts=True)[1]
        table.add_row(
            "groups",
            f"{len(sizes):,} of {int(sizes.min()):,} to {int(sizes.max()):,} pictures, which splits keep whole",
        )
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


def classes_a_picture(labels: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """How many classes a picture may have, in words, and the place of each picture among them. labels: uint8 [N, K]."""
    counts, index = labels.sum(1).unique(return_inverse=True)
    return tuple("none" if count == 0 else str(count) for count in counts.tolist()), index


def print_counts(console: Console, kind: str, names: tuple[str, ...], index: Tensor) -> None:
    """Print how many images each class or domain has; those after the first LISTED in one line. index: int64 [N], or uint8 [N, K]."""
    counts = (index.sum(0) if has_several(index) else torch.bincount(index, minlength=len(names))).tolist()
    table = Table(kind, "pictures", "share", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in list(zip(names, counts, strict=True))[:LISTED]:
        table.add_row(escape(printable(name)), f"{count:,}", f"{count / max(len(index), 1):.1%}")
    console.print(table)
    if len(names) > LISTED:
        console.print(f"and {len(names) - LISTED} more, of {min(counts):,} to {max(counts):,} pictures")
