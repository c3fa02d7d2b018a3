"""`rootstock data URI --pack FOLDER`: copy a set into one file of records with checksums, and report the result."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from ..core.images.open import open_images, open_with_splits
from ..core.images.pack.record import Packing
from ..core.images.pack.writer import pack
from ..core.images.places import uri_path
from ..core.images.sets import refuse_inside
from ..core.printable import printable
from .data import LISTED, print_summary


def pack_set(uris: Sequence[str], folder: Path, packing: Packing, skip_damaged: bool) -> int:
    """Pack one set, or the union of several. Returns the exit code 0; errors are raised."""
    console = Console(highlight=False)
    images, splits = open_with_splits(uris)
    refuse_inside(images, folder, "--pack")

    def progress_bar(numbers: Iterable[int], count: int) -> Iterable[int]:
        quiet = not console.is_terminal
        return track(numbers, "records", total=count, console=console, disable=quiet, transient=True)

    packed = pack(images, splits, folder, packing, skip_damaged=skip_damaged, follow=progress_bar)
    for _, sentence in packed.damaged[:LISTED]:
        console.print(f"[red]left out[/] {escape(printable(sentence))}", soft_wrap=True)
    if len(packed.damaged) > LISTED:
        console.print(f"and {len(packed.damaged) - LISTED} more")
    if packed.resumed:
        console.print(f"{packed.resumed:,} pictures were packed already")
    print_summary(console, open_images(f"pack:{uri_path(folder)}" + ("#all" if splits else "")))
    changes = packing.changes()
    console.print(
        "the pixels are those of the source"
        if changes is None
        else f"[yellow]the pixels are not those of the source[/]: {changes}; compare results before relying on them"
    )
    name = escape(printable(uri_path(folder)))
    console.print(
        f"packed {packed.pictures:,} pictures in {packed.size:,} bytes"
        + (f", [red]{len(packed.damaged)} damaged ones left out[/]" if packed.damaged else "")
        + f"; open them as pack:{name}",
        soft_wrap=True,
    )
    return 0
