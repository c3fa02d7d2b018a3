"""Tables of what a network says about pictures, one row a picture: as .csv, .npz or .parquet, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from ...core.errors import UserError
from ...core.files import whole_file

TABLE_ROWS = 4096
PARQUET = ".parquet"

# The texts of a column; or numbers, [N, ...], each row of which is one cell.
Column = Sequence[str] | Tensor
TableColumns = Mapping[str, Column]


def check_parquet(path: Path) -> None:
    """Raises UserError where the file is to be parquet and pyarrow, which writes it, is not installed."""
    if path.suffix.lower() == PARQUET:
        _arrow(path)


def write_csv(path: Path, columns: TableColumns) -> None:
    """A header and one line a picture, in UTF-8; numbers as `repr` writes them. A name that is no UTF-8 keeps its bytes."""
    with whole_file(path) as file:
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="", write_through=True)
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(columns)
        for start in range(0, _count(columns), TABLE_ROWS):
            parts = [_plain(column[start : start + TABLE_ROWS]) for column in columns.values()]
            lines.writerows(zip(*parts, strict=True))
        text.detach()


def write_npz(path: Path, columns: TableColumns, about: Mapping[str, Any]) -> None:
    """Arrays by name, which numpy.load opens without pickle; `about` is a text of JSON. The same arrays give the same bytes."""
    arrays = {
        name: column.numpy() if isinstance(column, Tensor) else np.array(column, dtype=np.str_)
        for name, column in columns.items()
    }
    with whole_file(path) as file:
        # Their pages are read as they are written, so arrays that are mapped may be larger than the memory.
        np.savez(file, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)


def write_parquet(path: Path, columns: TableColumns, about: Mapping[str, Any]) -> None:
    """TableColumns of texts, numbers and lists of fixed length; `about` is JSON in the schema's metadata under `rootstock`."""
    arrow = _arrow(path)
    from pyarrow import parquet

    n = _count(columns)
    first = {name: _arrow_array(arrow, column[:1]) for name, column in columns.items()}
    schema = arrow.schema([(name, array.type) for name, array in first.items()])
    schema = schema.with_metadata({"rootstock": json.dumps(about)})
    with whole_file(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, n, TABLE_ROWS):
            arrays = [_arrow_array(arrow, column[start : start + TABLE_ROWS]) for column in columns.values()]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))


def _arrow(path: Path) -> ModuleType:
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            f"{path}: to write parquet needs pyarrow; `pip install 'rootstock[parquet]'`, or name a file of another kind"
        ) from None
    return pyarrow


def _arrow_array(arrow: Any, column: Column) -> Any:
    """A part of a column; rows of several numbers become nested lists of fixed length."""
    if not isinstance(column, Tensor):
        return arrow.array([_unicode(text) for text in column], type=arrow.string())
    array = arrow.array(column.contiguous().flatten().numpy())
    for side in reversed(column.shape[1:]):
        array = arrow.FixedSizeListArray.from_arrays(array, side)
    return array


def _unicode(text: str) -> str:
    """A name as parquet can hold it: bytes that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _plain(part: Column) -> Sequence[Any]:
    """Numbers by the shortest text that gives them back in their own precision."""
    return [str(number) for number in part.numpy()] if isinstance(part, Tensor) else part


def _count(columns: TableColumns) -> int:
    return len(next(iter(columns.values())))
