"""Tables of text: the columns of a `csv:`, and what is wrong with them, by line."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError
from ..decode import is_picture
from ..notes import Note
from ..places import abridged, reason_of

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}


class TextTable(NamedTuple):
    """A table with a header. lines: where each row begins in the file. separator: between the columns."""

    file: Path
    title: str
    separator: str
    header: list[str]
    body: list[list[str]]
    lines: list[int]

    def column(self, name: str, needed: bool) -> list[str]:
        """The cells of a column, stripped; none if it is missing and not needed. Raises UserError."""
        header, title = self.header, self.title
        if name not in header:
            if needed:
                raise UserError(
                    f"{title}: there is no column {abridged(name, 60)}{no_column(header, name, self.separator)}"
                )
            return []
        if header.count(name) > 1:
            raise UserError(
                f"{title}: {header.count(name)} columns are called {abridged(name, 60)}; rename those that are not meant, or remove them"
            )
        check_lengths(header, self.body, self.lines, self.separator, title)
        return [row[header.index(name)].strip() for row in self.body]


def table_of(file: Path, title: str, separator: str | None, encoding: str) -> TextTable:
    """The table in a file. separator: as the option of `csv:`; by default a comma, or a tab in a .tsv."""
    if separator is not None and separator not in (*SEPARATORS, *SEPARATORS.values()):
        raise UserError(f"{title}: separator={abridged(separator, 40)} is unknown (known: {', '.join(SEPARATORS)})")
    between = SEPARATORS.get(separator or "", separator) or ("\t" if file.suffix == ".tsv" else ",")
    return TextTable(file, title, between, *rows_of(read_lines(file, title, encoding), between, title))


def check_filled(kind: str, values: Sequence[str], lines: Sequence[int], title: str) -> None:
    """Raises UserError if some rows have a value and others none. kind: label or domain."""
    if "" in values and any(values):
        line = lines[values.index("")]
        hint = "; if a picture may have none or several, add ?several=semicolon" if kind == "label" else ""
        raise UserError(f"{title}: line {line} has no {kind}, others have; fill it in or leave the column out{hint}")


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
