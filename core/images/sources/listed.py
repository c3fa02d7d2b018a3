"""`list:` and `csv:`: images listed in a text file."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ...errors import UserError
from ...printable import printable
from ..decode import is_picture
from ..store import Source, number_classes
from .files import FileStore, checked_bits, stamps_of


def open_list(path: str, split: str | None, *, root: str | None = None, bits: int | None = None) -> Source:
    """list:FILE with lines `PATH LABEL` (separated by a tab, or by the last space) or `PATH`; empty lines are skipped.

    Paths are relative to `root`, by default the folder of the list. bits: as of `folder:`.
    """
    title, listing = f"list:{path}", existing_file(path, "list")
    names, labels, first = [], [], ""
    for number, line in enumerate(read_lines(listing, title), start=1):
        if not line.strip():
            continue
        name, label = split_line(line)
        if names and (label is None) != (not labels):
            raise UserError(f"{title}: {first} and line {number} differ: give every picture a label, or none")
        first = first or f"line {number}"
        names.append(name)
        labels += [] if label is None else [label]
    return source_of_names(title, root, listing, names, labels, bits)


def split_line(line: str) -> tuple[str, str | None]:
    """(path, label or None). A path may contain spaces: a line that ends with an image's extension is a path without label."""
    if "\t" in line:
        name, _, label = line.rpartition("\t")
        return name.strip(), label.strip()
    if is_picture(line.strip()) or len(line.split()) < 2:
        return line.strip(), None
    name, label = line.rsplit(maxsplit=1)
    return name.strip(), label


def open_csv(
    file: str,
    split: str | None,
    *,
    root: str | None = None,
    path: str = "path",
    label: str | None = None,
    domain: str | None = None,
    bits: int | None = None,
) -> Source:
    """csv:FILE with a header: columns path[,label[,domain]], or the columns that the options name; a .tsv is separated by tabs."""
    title, table = f"csv:{file}", existing_file(file, "csv")
    rows = csv.reader(read_lines(table, title), delimiter="\t" if table.suffix == ".tsv" else ",", strict=True)
    try:
        header, *body = list(rows) or [[]]
    except csv.Error as error:
        raise UserError(f"{title}: line {rows.line_num} is not readable as a table ({error})") from None
    header, body = [name.strip() for name in header], [row for row in body if row]
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise UserError(
                f"{title}: row {number} has {len(row)} columns and the header {len(header)}; quote commas in a field"
            )

    def column(name: str, needed: bool) -> list[str]:
        if name not in header:
            if needed:
                raise UserError(
                    f"{title}: there is no column {name} (there are: {', '.join(header) or 'none'}); name it in the URI"
                )
            return []
        return [row[header.index(name)].strip() for row in body]

    labels = column(label or "label", label is not None)
    domains = column(domain or "domain", domain is not None)
    for kind, values in ("label", labels), ("domain", domains):
        if "" in values and any(values):
            raise UserError(
                f"{title}: row {values.index('') + 2} has no {kind}, others have; fill it in or leave the column out"
            )
    source = source_of_names(title, root, table, column(path, True), labels if any(labels) else [], bits)
    if not any(domains):
        return source
    index, names = number_classes(domains)
    return Source(source.store, source.labels, source.classes, domains=index, domain_names=names)


def existing_file(path: str, scheme: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        remedy = f"it is a folder: open it as folder:{path}" if file.is_dir() else "check the path"
        raise UserError(f"{scheme}:{path}: there is no such file; {remedy}")
    return file


def read_lines(file: Path, title: str) -> list[str]:
    try:
        # not splitlines: a file name may contain a form feed or another character that Unicode counts as a line break
        return [line.removesuffix("\r") for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise UserError(f"{title}: cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{title}: not a text in UTF-8 (byte {error.start}); save it as UTF-8") from None


def source_of_names(
    title: str, root: str | None, file: Path, names: Sequence[str], labels: Sequence[str], bits: int | None = None
) -> Source:
    """The images `names` under `root`, with their labels if there are any."""
    if not names:
        raise UserError(f"{title}: no pictures are named in {printable(str(file))}; expected one a line")
    if "" in names:
        raise UserError(f"{title}: picture {names.index('') + 1} has no path")
    top = os.path.join(file.parent, Path(root).expanduser()) if root else str(file.parent)
    store = FileStore(top, names, stamps_of(top, names, title), checked_bits(bits, title))
    if not labels:
        return Source(store)
    indices, classes = number_classes(labels)
    return Source(store, indices.to(torch.int64), classes)
