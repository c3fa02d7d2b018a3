"""`hf:`: sets of Hugging Face on this disk, without the package `datasets`: saved by `save_to_disk`, cached by `load_dataset`, or Parquet.

The bytes of pictures lie in Arrow's files as they are, so they are read in place. Only compressed ones are copied, as those of Parquet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...printable import printable
from ..foreign import parsing
from ..limits import RATIO, UnpackLimits, limits_of
from ..places import abridged, place_named, titled
from ..store import Source
from .archives import LocalArchive
from .columns import ROWS_MADE_BY, Asked, RowColumns, arrow, columns_of, struct_field
from .copies import NO_SUM, copied_rows
from .files import checked_bits
from .named_splits import split_of_cached, wanted
from .parquet import (
    Shard,
    asked_for,
    files_below,
    open_parquet,
    source_of_shards,
    values_of,
)

STATE, SPLITS = "state.json", "dataset_dict.json"
"""What `save_to_disk` writes beside the rows of a set, and beside the folders of several splits."""


def open_hf(
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
) -> Source:
    """hf:FOLDER: what `save_to_disk` wrote, a folder of `load_dataset`'s cache, or a snapshot of the hub's cache.

    The options are those of `parquet:`.
    """
    title = titled("hf", path)
    root = snapshot_of(place_named(path, title), title)
    files = arrow_files(root, title)
    if not files:
        return open_parquet(
            str(root), split, image=image, label=label, labels=labels, domain=domain, group=group,
            max_size=max_size, max_ratio=max_ratio, bits=bits,
        )  # fmt: skip
    asked, limits = asked_for(image, label, labels, domain, group, title), limits_of(max_size, max_ratio, title)
    found: list[tuple[Shard, str]] = []
    columns: RowColumns | None = None
    for file, name in wanted([file for file, _ in files], [name for _, name in files], split, group):
        shard, columns = shard_of_arrow(file, asked, columns, limits, titled("hf", str(file)))
        found.append((shard, name))
    assert columns is not None
    return source_of_shards(found, columns, asked, path, title, checked_bits(bits, title), root)


def snapshot_of(root: Path, title: str) -> Path:
    """The folder itself, or the only snapshot in a folder of the hub's cache. Raises UserError if there is no folder, or several."""
    if not root.is_dir():
        known = "; parquet: opens a file" if root.is_file() else ", or download the set first"
        raise UserError(f"{title}: there is no folder {printable(str(root))}; check the path{known}")
    snapshots = sorted(one for one in (root / "snapshots").glob("*") if one.is_dir())
    if len(snapshots) > 1:
        raise UserError(
            f"{title}: it holds {len(snapshots)} snapshots; name one, such as {printable(str(snapshots[-1]))}"
        )
    return snapshots[0] if snapshots else root


def arrow_files(root: Path, title: str) -> list[tuple[Path, str]]:
    """Files of rows in their order, with the split of each, '' for none; no files if the folder holds no Arrow."""
    if (root / SPLITS).is_file():
        names = listed(root / SPLITS, title).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) and is_inner(name) for name in names):
            raise UserError(f"{title}: {SPLITS} names no splits; {ROWS_MADE_BY}")
        return [(file, name) for name in names for file in files_of_state(root / name, title)]
    if (root / STATE).is_file():
        return [(file, "") for file in files_of_state(root, title)]
    if not any(root.glob("*.arrow")):
        return []
    files = [file for file in files_below(root, ".arrow", title) if not file.name.startswith("cache-")]
    return [(file, split_of_cached(file)) for file in files]


def files_of_state(folder: Path, title: str) -> list[Path]:
    """The files that a set's state lists, in its order. Raises UserError if one is not there, or if rows were chosen among theirs."""
    state = listed(folder / STATE, title)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(
            f"{title}: rows of it were chosen without copying them; call flatten_indices() and save it again"
        )
    try:
        names = [str(one["filename"]) for one in state["_data_files"]]
    except (KeyError, TypeError):
        raise UserError(f"{title}: {STATE} names no files; {ROWS_MADE_BY}") from None
    if odd := [name for name in names if not is_inner(name) or not (folder / name).is_file()]:
        raise UserError(f"{title}: its file {abridged(odd[0])} is not in {printable(str(folder))}; fetch it again")
    return [folder / name for name in names]


def is_inner(name: str) -> bool:
    """Whether this is the name of something right inside a folder."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def listed(file: Path, title: str) -> dict[str, Any]:
    """What a small file of JSON says. Raises UserError for another."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{title}: {printable(str(file))} is missing or damaged; {ROWS_MADE_BY}")
    return found


def shard_of_arrow(
    file: Path, asked: Asked, columns: RowColumns | None, limits: UnpackLimits, title: str
) -> tuple[Shard, RowColumns]:
    """A file of Arrow; and its columns, which have to be `columns` if these are given."""
    pa, archive = arrow(title), LocalArchive(file)
    with parsing(title, ROWS_MADE_BY):
        mapped = pa.memory_map(str(file))
        whole = mapped.read_buffer(mapped.size())
        schema = batches_of(pa, whole)[0]
    own = columns_of(schema, asked, title)
    if columns is not None and own != columns:
        raise UserError(
            f"{title}: its columns differ from those of the files before it; open the parts as several URIs"
        )

    def arrays() -> Iterator[Any]:
        return (pictures_in(batch, own) for batch in batches_of(pa, whole)[1])

    with parsing(title, ROWS_MADE_BY):
        spans = [spans_within(array, whole) for array in arrays()]
        kept = [said_in(pa, batch, own) for batch in batches_of(pa, whole)[1]]
        table = pa.Table.from_batches(kept, said_in(pa, schema.empty_table(), own).schema)
    place, inside = file, np.concatenate([np.zeros((0, 3), np.int64), *(one for one in spans if one is not None)])
    if any(one is None for one in spans):
        place, inside = copied_rows(archive, own.content, lambda: values_of(arrays(), title), limits, title)
    return Shard(archive, place, inside, schema, table, title), own


def batches_of(pa: Any, whole: Any) -> tuple[Any, Iterator[Any]]:
    """(schema, batches) in the bytes of a file: a stream, as `datasets` writes it, or Arrow's file format."""
    try:
        stream = pa.ipc.open_stream(whole)
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(whole)
        return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
    return stream.schema, iter(stream)


def pictures_in(batch: Any, columns: RowColumns) -> Any:
    """The binary array of the pictures of a batch."""
    array = batch.column(columns.image)
    return struct_field(array, "bytes") if columns.nested else array


def said_in(pa: Any, batch: Any, columns: RowColumns) -> Any:
    """A batch, or an empty table, without the bytes of its pictures: the columns that `said_by` reads."""
    names = [name for name in dict.fromkeys((columns.label, columns.domain, columns.group)) if name is not None]
    arrays = [batch.column(name) for name in names]
    if columns.with_path:
        structs = batch.column(columns.image)
        structs = structs.combine_chunks() if hasattr(structs, "chunks") else structs
        arrays.append(pa.StructArray.from_arrays([struct_field(structs, "path")], names=["path"]))
        names.append(columns.image)
    if hasattr(batch, "to_batches"):
        return pa.table(arrays, names=names)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def spans_within(array: Any, whole: Any) -> np.ndarray | None:
    """int64 [N, 3]: where the values of a binary array lie in its file, as of `Shard`; None if they were decompressed, so lie elsewhere."""
    array.validate(full=True)
    wide = str(array.type) == "large_binary"
    if str(array.type) not in ("binary", "large_binary"):
        return None
    _, ends, values = array.buffers()
    if not len(array) or values is None:
        return np.full((len(array), 3), (0, 0, NO_SUM), dtype=np.int64)
    start = values.address - whole.address
    if not 0 <= start <= whole.size - values.size:
        return None
    offsets = np.frombuffer(ends, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
    begins, sizes = start + offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
    sizes[np.asarray(array.is_null())] = 0
    return np.column_stack([begins, sizes, np.full_like(sizes, NO_SUM)])
