"""`list:` and `csv:`: images listed in a text file."""

import dataclasses
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ..cache import stamp_of
from ..decode import is_picture
from ..groups import numbered_groups
from ..notes import Note
from ..places import abridged, file_named, kind_of_place, place_named, reason_of, titled
from ..several import names_in_cell, number_several
from ..store import Source, number_classes
from .files import FileStore, checked_bits
from .table import SEPARATORS, TextTable, about_columns, check_filled, read_lines, table_of

NAMED = 5
"""How many missing files an error names."""


def open_list(
    path: str, split: str | None, *, root: str | None = None, encoding: str = "utf-8", bits: int | None = None
) -> Source:
    """list:FILE with lines `PATH LABEL` (separated by a tab, or by the last space) or `PATH`; empty lines are skipped.

    Paths are relative to `root`, by default the folder of the list. encoding: of the text, such as utf-16 or latin-1. bits: as of
    `folder:`.
    """
    title = titled("list", path)
    listing = file_named(path, title)
    names, labels, lines = [], [], []
    for number, line in enumerate(read_lines(listing, title, encoding), start=1):
        if not line.strip():
            continue
        name, label = split_line(line)
        if names and (label is None) != (not labels):
            raise UserError(f"{title}: line {lines[0]} and line {number} differ: give every picture a label, or none")
        names.append(name)
        lines.append(number)
        labels += [] if label is None else [label]
    return source_of_names(title, root, listing, names, labels, lines, bits)


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
    several: str | None = None,
    domain: str | None = None,
    group: str | None = None,
    separator: str | None = None,
    encoding: str = "utf-8",
    bits: int | None = None,
) -> Source:
    """csv:FILE with a header: columns path[,label[,domain]], or the columns that the options name; a .tsv is separated by tabs.

    separator: comma, semicolon, tab or pipe, between the columns. several: the same words or space, between the classes of a label, of
    which an image may have any number. group: a column that says what belongs together, such as the patient: no split tears it.
    encoding: of the text, such as utf-16 or latin-1. bits: as of `folder:`.
    """
    title = titled("csv", file)
    table = table_of(file_named(file, title), title, separator, encoding)
    paths, lines = table.column(path, True), table.lines
    within = None if several is None else between_classes(several, table.separator, title)
    option = "label" if label else "several" if several else ""
    labels = table.column(label or "label", bool(option))
    domains = table.column(domain or "domain", domain is not None)
    groups = groups_of_rows(table, group, label or "label")
    sets = [] if within is None else classes_of_cells(labels, within, lines, title)
    check_filled("label", [] if within else labels, lines, title)
    check_filled("domain", domains, lines, title)
    if option and labels and not any(labels):
        column_shown = abridged(label or "label", 60)
        raise UserError(f"{title}: the column {column_shown} is empty; fill it in, or remove ?{option}=")
    labels = [str(names) for names in sets] if within else labels
    source = source_of_names(title, root, table.file, paths, labels if any(labels) else [], lines, bits)
    if within:
        numbers, classes = number_several(sets)
        source = dataclasses.replace(source, labels=numbers, classes=classes)
    read = (path, label or "label", domain or "domain", group)
    unread = [name for name in table.header if name and name not in read]
    notes = (*source.notes, *about_columns(unread, source.labels is not None))
    source = dataclasses.replace(source, notes=notes, groups=numbered_groups(groups) if groups else None)
    if not any(domains):
        return source
    index, names = number_classes(domains)
    return dataclasses.replace(source, domains=index, domain_names=names)


def groups_of_rows(table: TextTable, group: str | None, label: str) -> list[str]:
    """The group of each row; none without the option. Raises UserError for an empty one, or if it is the label."""
    if group is None:
        return []
    if group == label:
        raise UserError(
            f"{table.title}: group={abridged(group, 60)} is the column of the labels, which must not shape a split; name the column "
            "that says what belongs together, such as the patient"
        )
    groups = table.column(group, True)
    if not any(groups):
        raise UserError(f"{table.title}: the column {abridged(group, 60)} is empty; fill it in, or remove ?group=")
    check_filled("group", groups, table.lines, table.title)
    return groups


def between_classes(several: str, between: str, title: str) -> str:
    """What separates the classes of a label, for the option `several`. Raises UserError if it is unknown, or separates columns too."""
    known = {**SEPARATORS, "space": " "}
    if several not in (*known, *known.values()):
        raise UserError(f"{title}: several={abridged(several, 40)} is unknown (known: {', '.join(known)})")
    within = known.get(several, several)
    if within == between:
        word = next(word for word, sign in known.items() if sign == within)
        raise UserError(
            f"{title}: {word} separates the columns, so it cannot separate the classes in a label too; write these with another one, such "
            f"as ?several={'pipe' if within != '|' else 'semicolon'}"
        )
    return within


def classes_of_cells(cells: Sequence[str], within: str, lines: Sequence[int], title: str) -> list[list[str]]:
    """The classes that each cell holds, sorted. Raises UserError for a cell that cannot be, naming its line."""
    return [
        sorted(names_in_cell(cell, within, f"{title}: line {line}")) for cell, line in zip(cells, lines, strict=True)
    ]


def source_of_names(
    title: str,
    root: str | None,
    file: Path,
    names: Sequence[str],
    labels: Sequence[str],
    lines: Sequence[int],
    bits: int | None,
) -> Source:
    """The images `names` under `root`, with their labels if there are any. lines: where each is named."""
    if not names:
        raise UserError(f"{title}: it names no pictures; expected one a line")
    if "" in names:
        raise UserError(f"{title}: line {lines[names.index('')]} has no path; fill it in, or remove the line")
    top = os.path.join(file.parent, place_named(root, f"{title}: root")) if root else str(file.parent)
    store = FileStore(top, names, stamps_of_listed(top, names, lines, title), checked_bits(bits, title))
    notes = about_repeated(names, labels)
    if not labels:
        return Source(store, notes=notes)
    indices, classes = number_classes(labels)
    return Source(store, indices.to(torch.int64), classes, notes=notes)


def about_repeated(names: Sequence[str], labels: Sequence[str]) -> tuple[Note, ...]:
    """Files that are listed more than once, also as `a.png` and `./a.png`, and those of them that have several labels."""
    found: dict[str, set[str]] = {}
    repeated: list[str] = []
    for i, name in enumerate(names):
        place = os.path.normpath(name)
        if place in found:
            repeated.append(place)
        found.setdefault(place, set()).update(labels[i : i + 1])
    if not repeated:
        return ()
    notes = [Note(len(repeated), "pictures listed again, which count double", Counter(repeated).most_common(1)[0][0])]
    if unsure := [place for place, given in found.items() if len(given) > 1]:
        notes.append(Note(len(unsure), "pictures listed with several labels", unsure[0]))
    return tuple(notes)


def stamps_of_listed(top: str, names: Sequence[str], lines: Sequence[int], title: str) -> np.ndarray:
    """int64 [N, 3]: the `file_stamp` of each file. Raises UserError with the number of all that cannot be used, and the first of them."""
    stamps, wrong = [], []
    for name, line in zip(names, lines, strict=True):
        file = os.path.join(top, name)
        try:
            status = os.stat(file)
            if stat.S_ISREG(status.st_mode):
                stamps.append(stamp_of(status))
                continue
            reason = f"is {kind_of_place(status.st_mode)}, not a file"
        except OSError as error:
            reason = "is a dangling link" if os.path.islink(file) else f"({reason_of(error)})"
        except ValueError:
            reason = "(its path holds a NUL)"
        wrong.append(f"line {line}: {abridged(name)} {reason}")
    if not wrong:
        return np.array(stamps, dtype=np.int64).reshape(-1, 3)
    hint = "restore them, or remove their lines"
    if any("\\" in name and os.path.exists(os.path.join(top, name.replace("\\", "/"))) for name in names[:1]):
        hint = "write the paths with / instead of \\"
    elif root_hint := next((name for name in names if not os.path.dirname(name)), None):
        hint += f"; or add ?root=FOLDER if {abridged(root_hint, 60)} lies in another folder than {abridged(top)}"
    more = "; ..." if len(wrong) > NAMED else ""
    raise UserError(
        f"{title}: {len(wrong):,} of its {len(names):,} pictures cannot be opened, {'; '.join(wrong[:NAMED])}{more}; {hint}"
    )
