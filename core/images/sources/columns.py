"""Tables of Arrow (Parquet, Hugging Face): which column holds the pictures, and what the others say of them.

A column of pictures is binary, or a struct with a field `bytes` and perhaps `path`, as Hugging Face writes images. Whole numbers
of a column that Hugging Face declares as ClassLabel become the names of the classes, and -1 there is no label.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...errors import UserError
from ..foreign import parsing
from ..groups import numbered_groups
from ..notes import Note
from ..places import abridged, uri_path
from ..several import number_several
from ..store import number_classes
from .table import about_columns

ROWS_MADE_BY = "check how it was made, or fetch it again"
IMAGE, LABEL, DOMAIN = "image", "label", "domain"
"""The columns that are read unless the URI names others."""


def arrow(title: str) -> Any:
    """The package pyarrow. Raises UserError without it."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{title}: pyarrow reads it, which is not installed; `pip install 'rootstock[parquet]'` or `pip install pyarrow`"
        ) from None
    return pyarrow


class Asked(NamedTuple):
    """The columns that a URI names; None for those that are found by their usual names."""

    image: str | None = None
    label: str | None = None
    labels: bool = True
    domain: str | None = None
    group: str | None = None


class RowColumns(NamedTuple):
    """The columns of a file that are read. image: that of the pictures; nested: whether it is a struct; with_path: and has a path."""

    image: str
    nested: bool
    with_path: bool
    label: str | None
    domain: str | None
    group: str | None

    @property
    def content(self) -> str:
        """The name of the leaf that holds the bytes of the pictures."""
        return f"{self.image}.bytes" if self.nested else self.image

    def about(self) -> list[str]:
        """The columns and leaves beside the pictures."""
        path = [f"{self.image}.path"] if self.with_path else []
        return [*path, *dict.fromkeys(name for name in (self.label, self.domain, self.group) if name is not None)]


def columns_of(schema: Any, asked: Asked, title: str) -> RowColumns:
    """The columns that a file of this schema has and a URI asks for. Raises UserError for one that is missing or of another kind."""
    with parsing(title, ROWS_MADE_BY):  # names may be no text
        names = list(schema.names)
        pictures = [
            name for name in dict.fromkeys(names) if names.count(name) == 1 and holds_bytes(schema.field(name).type)
        ]
    if repeated := [name for k, name in enumerate(names) if name in names[:k]]:
        raise UserError(f"{title}: two columns are called {abridged(repeated[0], 60)}; rename one")
    for option in ("image", "label", "domain", "group"):
        name = getattr(asked, option)
        if name is not None and name not in names:
            raise UserError(
                f"{title}: there is no column {abridged(name, 60)} (there are: {abridged(', '.join(names))}); correct ?{option}="
            )
    image = asked.image or (IMAGE if IMAGE in pictures else pictures[0] if len(pictures) == 1 else None)
    if image is None or image not in pictures:
        found = f"there are: {abridged(', '.join(pictures))}" if pictures else "there is none"
        wrong = (
            f"the column {abridged(image, 60)} holds no bytes of pictures" if image else "which column holds pictures?"
        )
        remedy = "name a column of bytes, or of structs with bytes, by ?image=COLUMN"
        remedy = remedy if pictures else "files that a column names are read by csv:FILE"
        raise UserError(f"{title}: {wrong} ({found}); {remedy}")
    with parsing(title, ROWS_MADE_BY):
        kind = schema.field(image).type
        inner = [kind.field(i).name for i in range(kind.num_fields)] if is_struct(kind) else []
    label = asked.label or (LABEL if LABEL in names else None)
    if asked.group is not None and asked.group == label:
        raise UserError(
            f"{title}: group={abridged(asked.group, 60)} is the column of the labels, which must not shape a split; name the column "
            "that says what belongs together, such as the patient"
        )
    domain = asked.domain or (DOMAIN if DOMAIN in names else None)
    return RowColumns(image, bool(inner), "path" in inner, label if asked.labels else None, domain, asked.group)


def is_struct(kind: Any) -> bool:
    return str(kind).startswith("struct<")


def holds_bytes(kind: Any) -> bool:
    """Whether a column of this type can hold pictures."""
    if is_struct(kind):
        return any(kind.field(i).name == "bytes" and holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return str(kind) in ("binary", "large_binary", "binary_view")


def class_names(schema: Any, column: str) -> list[str] | None:
    """The names of the classes that Hugging Face declares for a column; None without."""
    try:
        kind = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]
        names = kind.get("names", kind.get("feature", {}).get("names"))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


class Said(NamedTuple):
    """What the columns of all files say of each picture; no texts of a column that is not read."""

    paths: list[str]
    labels: list[Any]
    domains: list[Any]
    groups: list[Any]


def said_by(tables: Sequence[Any], schemas: Sequence[Any], columns: RowColumns, titles: Sequence[str]) -> Said:
    """The texts in the columns of several files, one after the other."""
    said = Said([], [], [], [])
    for table, schema, title in zip(tables, schemas, titles, strict=True):
        with parsing(title, ROWS_MADE_BY):
            table.validate(full=True)
        if columns.with_path:
            with parsing(title, ROWS_MADE_BY):
                for chunk in table.column(columns.image).chunks:
                    said.paths.extend(path or "" for path in struct_field(chunk, "path").to_pylist())
        for name, room in (
            (columns.label, said.labels), (columns.domain, said.domains), (columns.group, said.groups),
        ):  # fmt: skip
            if name is not None:
                room.extend(texts(table.column(name), class_names(schema, name), name, title))
    return said


def struct_field(structs: Any, name: str) -> Any:
    """A field of an array of structs; null where the struct is."""
    kind = structs.type
    return structs.flatten()[[kind.field(i).name for i in range(kind.num_fields)].index(name)]


def texts(column: Any, names: list[str] | None, name: str, title: str) -> Iterator[Any]:
    """The cells of a column as texts, or lists of texts; None where there is nothing. Raises UserError for other kinds of values."""
    with parsing(title, ROWS_MADE_BY):
        values = column.to_pylist()
    for row, value in enumerate(values):
        cell = [text_of(one, names) for one in value] if isinstance(value, list) else text_of(value, names)
        if cell is NotImplemented or (isinstance(cell, list) and (NotImplemented in cell or None in cell)):
            raise UserError(
                f"{title}: row {row} has {abridged(repr(value), 40)} in the column {abridged(name, 60)}, which is no text, no whole number "
                "and no class; name another column, or correct it"
            )
        yield cell


def text_of(value: Any, names: list[str] | None) -> Any:
    """A cell as a text; None if it is empty; NotImplemented if it is no text and no whole number, or the number of no class."""
    if value is None or isinstance(value, str):
        return value.strip() or None if value else None
    if isinstance(value, bool) or not isinstance(value, int):
        return NotImplemented
    if names is None:
        return str(value)
    if value == -1:
        return None
    return names[value] if 0 <= value < len(names) else NotImplemented


def labels_of(cells: Sequence[Any], name: str | None, title: str) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """(labels, classes) of the cells of the label column: None where none has one. Raises UserError if only some have one."""
    if name is None or all(cell is None for cell in cells):
        return None, None
    if any(isinstance(cell, list) for cell in cells):
        sets = [sorted(set(cell)) if cell else [] for cell in cells]
        return number_several(sets)
    return number_classes(filled(cells, "label", title, "; add ?labels=none to use all pictures without labels"))


def groups_of_cells(cells: Sequence[Any], name: str | None, title: str) -> Tensor | None:
    return None if name is None else numbered_groups(filled(cells, "group", title, ""))


def domains_of_cells(cells: Sequence[Any], name: str | None, title: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """(domains, names): none where no cell says one."""
    if name is None or all(cell is None for cell in cells):
        return None, ()
    return number_classes(filled(cells, "domain", title, ""))


def about_pictures(sizes: np.ndarray, paths: Sequence[str], columns: RowColumns, title: str) -> list[Note]:
    """A note about rows that name a file and hold no picture. sizes: bytes of each picture; paths: none, or one a row.

    Raises UserError if no row holds a picture: `datasets` keeps only paths of the files of a local folder.
    """
    without = [paths[row] for row in np.flatnonzero(sizes == 0).tolist() if paths and paths[row]]
    if sizes.any():
        what = "rows that name a file and do not hold it, which count as damaged pictures"
        return [Note(len(without), what, without[0])] if without else []
    if not without:
        raise UserError(
            f"{title}: no row holds a picture in the column {abridged(columns.image, 60)}; name another by ?image=COLUMN, or check how it "
            "was made"
        )
    folder = os.path.commonpath([os.path.dirname(path) for path in without]) if all(map(os.path.isabs, without)) else ""
    known = PurePath(folder).name and os.path.isdir(folder)
    place = f"folder:{abridged(uri_path(folder))}" if known else "their folder as folder:PATH"
    raise UserError(
        f"{title}: its rows hold paths of pictures ({abridged(without[0])}) and no pictures; open {place}, or save the set by save_to_disk "
        "of `datasets`, which copies the pictures into it, and open that"
    )


def about_other_columns(
    schema: Any, columns: RowColumns, asked: Asked, files: Sequence[PurePath], labelled: bool
) -> list[Note]:
    """Notes about columns that are not read, and about folders KEY=VALUE. files: their paths."""
    read = (columns.image, asked.label or LABEL, columns.domain, columns.group)
    classes = labelled or not asked.labels
    notes = about_columns([name for name in schema.names if name not in read], classes)
    folders = dict.fromkeys(part for file in files for part in file.parts[:-1] if "=" in part[1:])
    what = "folders that give all rows in them a value, which is not read; write it into a column"
    return [*notes, *([Note(len(folders), what, next(iter(folders)), "list" if classes else "say")] if folders else [])]


def filled(cells: Sequence[Any], kind: str, title: str, remedy: str) -> list[str]:
    """The cells, which are all texts. Raises UserError otherwise."""
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            has = "several" if isinstance(cell, list) else "no"
            raise UserError(
                f"{title}: row {row} has {has} {kind}, others have one; fill it in, or name another column{remedy}"
            )
    return list(cells)
