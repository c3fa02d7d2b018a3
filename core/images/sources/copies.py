"""Copies of the bytes of pictures in the cache, one after the other: of pictures in pages and volumes, which have no random access."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..cache import entry_name, made_once, recall, remember
from ..limits import UnpackLimits
from .archives import Archive, CopyRoom, made_copy

NO_SUM = -1
"""In the place of a checksum, of a picture that is read from its file itself."""


def copied_rows(
    file: Archive,
    what: str,
    values: Callable[[], Iterator[bytes]],
    limits: UnpackLimits,
    title: str,
) -> tuple[Path, np.ndarray]:
    """(the copy of all values in the cache, their spans int64 [N, 3]); made from `values` if it is not there yet."""
    name = entry_name(file.name, file.stamp, "rows", what)
    copy = file.place_of_copy(name, ".rows")
    stored = recall("indices", name) if copy.exists() else None
    if stored is not None:
        return made_once(copy, lambda _: None), np.frombuffer(stored, "<i8").astype(np.int64).reshape(-1, 3)
    found: list[tuple[int, int, int]] = []

    def write(target: BinaryIO | None) -> None:
        found.clear()
        made, room = 0, CopyRoom(file, title)
        for content in values():
            found.append((made, len(content), zlib.crc32(content)))
            made += len(content)
            limits.check(made, file.size, title)
            room.take(made)
            if target is not None:
                target.write(content)

    place = made_copy(copy, write, title, "copied")
    if not found:  # another process made the copy, or the index was lost
        write(None)
    spans = np.array(found, dtype=np.int64).reshape(-1, 3)
    remember("indices", name, spans.astype("<i8").tobytes(), max(file.stamp[1:]))
    return place, spans
