"""`parquet:`: pictures in the rows of Parquet files.

A page of Parquet has no random access: to read one picture, some hundred would be decompressed. So the bytes of the pictures are copied
to the cache once, batch by batch, and read from there as from a .tar. Workers then need no pyarrow, whose threads do not survive a fork.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import UserError
from ...printable import printable
from ..foreign import parsing
from ..limits import RATIO, UnpackLimits, limits_of
from ..places import abridged, place_named, titled
from ..remote.address import is_remote
from ..remote.blocks import Held
from ..store import Source
from .archives import Archive, LocalArchive, Shelf, refuse_cache, shelf_of
from .columns import (
    ROWS_MADE_BY,
    Asked,
    RowColumns,
    about_other_columns,
    about_pictures,
    arrow,
    columns_of,
    domains_of_cells,
    groups_of_cells,
    labels_of,
    said_by,
    struct_field,
)  # fmt: skip
from .copies import NO_SUM, copied_rows
from .files import checked_bits
from .named_splits import split_of_file, wanted
from .shards import pattern_name
from .tar import TarStore

COPIED_AT_ONCE = 32
"""Pictures of a batch that is copied: memory is bounded by these and a page."""

BUFFER = 1 << 20
"""Bytes that are read ahead of a column; without it, a whole group of rows would be."""


class ShardedRows(TarStore):
    """The pictures in the rows of files, read at their offsets in these, or in copies of their bytes.

    A copy has a checksum for each picture: to check whole blocks of it (`Sums`) would cost more than to read a small picture.
    """

    kind = "rows"
    sums: np.ndarray
    """int64 [N]: the CRC-32 of each picture in a copy; NO_SUM of one in the file itself."""

    def content(self, i: int) -> bytearray:
        place = self.archives[self.shard[i]]
        try:
            content = self._files.read(place, self.size(i), int(self.offsets[i]))
            if self.sums[i] not in (NO_SUM, zlib.crc32(content)):
                raise OSError(errno.EIO, f"its copy {place} has changed; delete that file", place)
        except OSError as error:
            raise self.of_copy(error, place) from None
        return content

    def holds(self, file: Path) -> bool:
        return str(file) in {os.path.realpath(one) for one in self.shown}


class Shard(NamedTuple):
    """A file of rows, or an object. place: where the bytes of its pictures lie, the file itself or a copy.

    spans: int64 [N, 3]: offset and size there, and the CRC-32 of a copy, or NO_SUM.

    schema, table: its columns, and the values of those beside the pictures.
    """

    file: Archive
    place: Path
    spans: np.ndarray
    schema: Any
    table: Any
    title: str


def open_parquet(
    path: str,
    split: str | None,
    *,
    image: str | None = None,
    label: str | None = None,
    labels: str | None = None,
    domain: str | None = None,
    group: str | None = None,
    max_size: str = "200GB",
    max_ratio: int = RATIO,
    bits: int | None = None,
    cache: str | None = None,
) -> Source:
    """parquet:FILE, parquet:FOLDER or parquet:PATTERN: a picture a row, in one file or several; also of objects (s3://...).

    image: the column of the pictures, of bytes or of structs with bytes; by default `image`, or the only one. label: the column of the
    classes, `label` by default; lists are several classes a picture. labels: none to ignore it. domain: the column of the domains,
    `domain` by default. group: a column that says what belongs together, such as the patient: no split tears it. Files that are named
    like splits (train-00000-of-00002.parquet, or train/0.parquet) are these; where only some are, only #all opens the others.
    max_size, max_ratio: as of `tar:`, for the copy of a file. bits: as of `folder:`. cache: as of `tar:`; copies of objects have to fit.
    """
    title = titled("parquet", path)
    shelf, root = shelf_of_rows(path, title, cache)
    files = shelf.archives
    names = [split_of_file(file.path) for file in files]
    asked, limits = asked_for(image, label, labels, domain, group, title), limits_of(max_size, max_ratio, title)
    found: list[tuple[Shard, str]] = []
    columns: RowColumns | None = None
    for file, name in wanted(files, names, split, group):
        own = title if len(files) == 1 else titled("parquet", file.shown)
        shard, columns = shard_of_parquet(file, asked, columns, limits, own)
        shelf.hold(shard.place)
        found.append((shard, name))
    assert columns is not None
    return source_of_shards(found, columns, asked, path, title, checked_bits(bits, title), root, shelf.held)


def shelf_of_rows(path: str, title: str, cache: str | None) -> tuple[Shelf, PurePath | None]:
    """The files, or objects, that a URI names, and the folder if it names one. Raises UserError."""
    if is_remote(path):
        folder = None if re.search(r"[*\[{]", path) or path.endswith(".parquet") else PurePosixPath(path.rstrip("/"))
        return shelf_of(path, title, cache, ending=None if folder is None else ".parquet"), folder
    root = place_named(path, title)
    if not root.is_dir():
        return shelf_of(path, title, cache), None
    refuse_cache(cache, title)
    return Shelf([LocalArchive(file) for file in files_below(root, ".parquet", title)]), root


def asked_for(
    image: str | None, label: str | None, labels: str | None, domain: str | None, group: str | None, title: str
) -> Asked:
    """The options about columns. Raises UserError for another value of `labels` than none."""
    if labels not in (None, "none"):
        raise UserError(
            f"{title}: labels={abridged(labels, 40)} is unknown (known: none); ?label=COLUMN names a column"
        )
    if labels and label:
        raise UserError(f"{title}: label={abridged(label, 40)} and labels=none contradict each other; remove one")
    return Asked(image, label, labels is None, domain, group)


def files_below(root: Path, ending: str, title: str) -> list[Path]:
    """The files of this ending below a folder, sorted; hidden ones are passed over. Raises UserError if there are none."""
    found: list[Path] = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if len(Path(folder).relative_to(root).parts) > 8:  # a link to a folder above has no end
            inner.clear()
        found += [Path(folder) / name for name in names if name.endswith(ending) and not name.startswith((".", "_"))]
    if not found:
        raise UserError(f"{title}: no file below {printable(str(root))} ends in {ending}; check the path")
    return sorted(found)


def shard_of_parquet(
    file: Archive, asked: Asked, columns: RowColumns | None, limits: UnpackLimits, title: str
) -> tuple[Shard, RowColumns]:
    """A file of Parquet, its pictures copied to the cache; and its columns, which have to be `columns` if these are given."""
    pa = arrow(title)
    with parsing(title, ROWS_MADE_BY):
        place = str(file.path) if isinstance(file, LocalArchive) else file.open()
        opened = pa.parquet.ParquetFile(place, buffer_size=BUFFER, pre_buffer=False)
        schema = opened.schema_arrow
    own = columns_of(schema, asked, title)
    if columns is not None and own != columns:
        raise UserError(
            f"{title}: its columns differ from those of the files before it; open the files as several URIs"
        )
    with parsing(title, ROWS_MADE_BY):
        table = opened.read(columns=own.about(), use_threads=False)

    def batches() -> Iterator[Any]:
        for batch in opened.iter_batches(COPIED_AT_ONCE, columns=[own.content], use_threads=False):
            yield struct_field(batch.column(0), "bytes") if own.nested else batch.column(0)

    place, spans = copied_rows(file, own.content, lambda: values_of(batches(), title), limits, title)
    if len(spans) != opened.metadata.num_rows:
        raise UserError(
            f"{title}: it announces {opened.metadata.num_rows:,} rows and has {len(spans):,}; {ROWS_MADE_BY}"
        )
    return Shard(file, place, spans, schema, table, title), own


def values_of(batches: Iterator[Any], title: str) -> Iterator[bytes]:
    """The values of binary arrays, one after the other; nothing for null."""
    while True:
        with parsing(title, ROWS_MADE_BY):
            array = next(batches, None)
            if array is None:
                return
            array.validate(full=True)
            values = array.to_pylist()
        yield from (value or b"" for value in values)


def source_of_shards(
    found: Sequence[tuple[Shard, str]],
    columns: RowColumns,
    asked: Asked,
    path: str,
    title: str,
    bits: int | None,
    folder: PurePath | None,
    held: Held | None = None,
) -> Source:
    """The pictures of several files, with the split of each. held: keeps the copies of objects."""
    shards = [shard for shard, _ in found]
    counts = [len(shard.spans) for shard in shards]
    if not sum(counts):
        raise UserError(f"{title}: it has no rows; check how it was made")
    said = said_by(
        [shard.table for shard in shards],
        [shard.schema for shard in shards],
        columns,
        [shard.title for shard in shards],
    )
    number = np.repeat(np.arange(len(shards)), counts)
    spans = np.concatenate([shard.spans for shard in shards])
    times = np.array([shard.file.stamp for shard in shards], dtype=np.int64)[number, 1:]
    top = folder or shards[0].file.path.parent
    names = names_of_rows([os.path.relpath(shard.file.path, top) for shard in shards], counts, said.paths)
    store = ShardedRows(
        str(top) if held is None else path, [str(shard.place) for shard in shards], [shard.file.shown for shard in shards],
        names, number, spans[:, 0], np.column_stack([spans[:, 1], times]), bits,
    )  # fmt: skip
    store.sums, store.held = spans[:, 2], held
    labels, classes = labels_of(said.labels, columns.label, title)
    notes = about_pictures(spans[:, 1], said.paths, columns, title)
    notes += about_other_columns(
        shards[0].schema, columns, asked, [shard.file.path for shard in shards], labels is not None
    )
    domains, domain_names = domains_of_cells(said.domains, columns.domain, title)
    splits = {name: torch.from_numpy(np.isin(number, [k for k, one in enumerate(found) if one[1] == name]).nonzero()[0])
              for name in dict.fromkeys(name for _, name in found if name)}  # fmt: skip
    source = Source(store, labels, classes, splits, groups=groups_of_cells(said.groups, columns.group, title))
    source = dataclasses.replace(source, notes=tuple(notes), folder=None if folder is None else str(folder))
    if domains is not None:
        return dataclasses.replace(source, domains=domains, domain_names=domain_names)
    return source if len(shards) == 1 or folder else dataclasses.replace(source, domain_names=(pattern_name(path),))


def names_of_rows(files: Sequence[str], counts: Sequence[int], paths: Sequence[str]) -> list[str]:
    """The names of the pictures: the paths that the rows say if they are all different, else file and row."""
    if paths and all(paths) and len(set(paths)) == len(paths):
        return list(paths)
    return [f"{file}/{row}" for file, count in zip(files, counts, strict=True) for row in range(count)]
