"""`list:` and `csv:`: images listed in a text file."""

import csv
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
from ..notes import Note
from ..places import abridged, file_named, kind_of_place, place_named, reason_of, titled
from ..several import names_in_cell, number_several
from ..store import Source, number_classes
from .files import FileStore, checked_bits

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
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
    separator: str | None = None,
    encoding: str = "utf-8",
    bits: int | None = None,
) -> Source:
    """csv:FILE with a header: columns path[,label[,domain]], or the columns that the options name; a .tsv is separated by tabs.

    separator: comma, semicolon, tab or pipe, between the columns. several: the same words or space, between the classes of a label, of
    which an image may have any number. encoding: of the text, such as utf-16 or latin-1. bits: as of `folder:`.
    """
    title = titled("csv", file)
    table = file_named(file, title)
    if separator is not None and separator not in (*SEPARATORS, *SEPARATORS.values()):
        raise UserError(f"{title}: separator={abridged(separator, 40)} is unknown (known: {', '.join(SEPARATORS)})")
    between = SEPARATORS.get(separator or "", separator) or ("\t" if table.suffix == ".tsv" else ",")
    header, body, lines = rows_of(read_lines(table, title, encoding), between, title)

    def column(name: str, needed: bool) -> list[str]:
        if name not in header:
            if needed:
                raise UserError(f"{title}: there is no column {abridged(name, 60)}{no_column(header, name, between)}")
            return []
        if header.count(name) > 1:
            raise UserError(
                f"{title}: {header.count(name)} columns are called {abridged(name, 60)}; rename those that are not meant, or remove them"
            )
        check_lengths(header, body, lines, between, title)
        return [row[header.index(name)].strip() for row in body]

    paths = column(path, True)
    within = None if several is None else between_classes(several, between, title)
    option = "label" if label else "several" if several else ""
    labels = column(label or "label", bool(option))
    domains = column(domain or "domain", domain is not None)
    sets = [] if within is None else classes_of_cells(labels, within, lines, title)
    check_filled("label", [] if within else labels, lines, title)
    check_filled("domain", domains, lines, title)
    if option and labels and not any(labels):
        column_shown = abridged(label or "label", 60)
        raise UserError(f"{title}: the column {column_shown} is empty; fill it in, or remove ?{option}=")
    labels = [str(names) for names in sets] if within else labels
    source = source_of_names(title, root, table, paths, labels if any(labels) else [], lines, bits)
    if within:
        numbers, classes = number_several(sets)
        source = dataclasses.replace(source, labels=numbers, classes=classes)
    unread = [name for name in header if name and name not in (path, label or "label", domain or "domain")]
    source = dataclasses.replace(source, notes=(*source.notes, *about_columns(unread, source.labels is not None)))
    if not any(domains):
        return source
    index, names = number_classes(domains)
    return dataclasses.replace(source, domains=index, domain_names=names)


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


def check_filled(kind: str, values: Sequence[str], lines: Sequence[int], title: str) -> None:
    """Raises UserError if some rows have a value and others none. kind: label or domain."""
    if "" in values and any(values):
        line = lines[values.index("")]
        hint = "; if a picture may have none or several, add ?several=semicolon" if kind == "label" else ""
        raise UserError(f"{title}: line {line} has no {kind}, others have; fill it in or leave the column out{hint}")


def classes_of_cells(cells: Sequence[str], within: str, lines: Sequence[int], title: str) -> list[list[str]]:
    """The classes that each cell holds, sorted. Raises UserError for a cell that cannot be, naming its line."""
    return [
        sorted(names_in_cell(cell, within, f"{title}: line {line}")) for cell, line in zip(cells, lines, strict=True)
    ]


def about_columns(unread: Sequence[str], labelled: bool) -> list[Note]:
    """The columns that are not read. A training says so if there are no labels: one of them may hold the classes."""
    if not unread:
        return []
    remedy = "" if labelled else "; ?label=COLUMN would read the classes from one"
    shown = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
    return [Note(len(unread), f"columns that are not read{remedy}", shown, "list" if labelled else "say")]


def check_lengths(
    header: Sequence[str], body: Sequence[Sequence[str]], lines: Sequence[int], separator: str, title: str
) -> None:
    """Raises UserError for a row of more or fewer columns than the header."""
    for number, row in zip(lines, body, strict=True):
        if len(row) != len(header):
            raise UserError(
                f"{title}: line {number} has {len(row)} columns and the header {len(header)}; quote a {separator!r} that is in a field"
            )


def rows_of(text: Sequence[str], separator: str, title: str) -> tuple[list[str], list[list[str]], list[int]]:
    """(header, rows, the line on which each row begins) of a table; empty lines are skipped. Rows may be longer or shorter."""
    # with the ends of lines, which a quoted field keeps
    reader = csv.reader((f"{line}\n" for line in text), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    begin = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{title}: line {begin} is not readable as a table ({error}); correct it") from None
    header = [name.strip() for name in rows[0]] if rows else []
    return header, rows[1:], lines[1:]


def no_column(header: Sequence[str], name: str, separator: str) -> str:
    """What to do if there is no column of this name."""
    for word, other in SEPARATORS.items():
        if other != separator and name in (part.strip() for part in separator.join(header).split(other)):
            return f" between {separator!r}, but there is one between {other!r}: add ?separator={word}"
    if any(is_picture(cell) for cell in header):
        return (
            f" in its first line ({abridged(separator.join(header), 60)}), which names a picture, so the table has no header; "
            f"add a first line such as {separator.join((name, 'label')[: len(header)])}"
        )
    return f" (there are: {abridged(', '.join(header)) or 'none'}); name it in the URI: ?path=COLUMN, ?label=COLUMN"


def read_lines(file: Path, title: str, encoding: str) -> list[str]:
    """The lines of a text. Raises UserError if it has another encoding, naming the option that reads it."""
    content = b""
    try:
        content = file.read_bytes()
        # with the mark that some editors put in front
        text = content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except OSError as error:
        raise UserError(f"{title}: cannot be read ({reason_of(error)}); check its permissions") from None
    except UnicodeDecodeError as error:
        guess = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
        advice = f"save it as UTF-8, or add ?encoding={guess}" if encoding != guess else "save it as UTF-8"
        raise UserError(f"{title}: not a text in {encoding.upper()} (byte {error.start}); {advice}") from None
    except (LookupError, ValueError, AssertionError):
        raise UserError(
            f"{title}: encoding={abridged(encoding, 40)} is unknown; expected for example utf-8, utf-16 or latin-1"
        ) from None
    # not splitlines: a file name may contain a form feed or another character that Unicode counts as a line break
    return [line.removesuffix("\r") for line in text.split("\n")]


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
