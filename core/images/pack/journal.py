"""The records of an unfinished pack, and the journal that tells which of them are complete.

An entry is written after its record and has checksums of both, so whatever an interruption leaves (half a record, half an entry,
holes after a power failure) is recognised, and everything from there on is written again.
"""

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..images import Images
from ..store import DamagedImage
from .files import RECORDS
from .reader import checksum
from .record import Packing, PackRecord, record_of
from .validate import ENCODED, ITEM_BYTES

JOURNAL = "journal.bin"
DAMAGED = 255
"""The kind of an entry for an image that cannot be read; it has no record."""

ENTRY = np.dtype([("end", "<i8"), ("record", "<u4"), ("kind", "<u4"), ("shape", "<i4", 3), ("entry", "<u4")])
"""One image: the end of its record in bytes, the record's checksum, its kind, (C, H, W), and the checksum of the entry itself."""

THREADS, AT_ONCE = 4, 64
"""Number of decoding threads, and of images decoded at a time, which bounds the memory."""


def trusted_entries(part: Path, most: int) -> np.ndarray:
    """The journal's entries (ENTRY [K]) before the first one that is incomplete or wrong, or whose record is; K is at most `most`."""
    content = (part / JOURNAL).read_bytes()
    whole = min(len(content) // ENTRY.itemsize, most)
    entries = np.frombuffer(content[: whole * ENTRY.itemsize], ENTRY)
    total = (part / RECORDS).stat().st_size
    with open(part / RECORDS, "rb") as records:
        start = 0
        for k, entry in enumerate(entries):
            end = int(entry["end"])
            if checksum(entry.tobytes()[:-4]) != entry["entry"] or not start <= end <= total:
                return entries[:k]
            record = records.read(end - start)
            if len(record) < end - start or checksum(record) != entry["record"] or not possible(entry, end - start):
                return entries[:k]
            start = end
    return entries


def possible(entry: np.void, size: int) -> bool:
    """Whether a record of `size` bytes can be of the kind and shape of its entry."""
    kind, shape = int(entry["kind"]), entry["shape"].tolist()
    if kind == DAMAGED:
        return size == 0
    return min(shape) > 0 and (kind == ENCODED or (kind in ITEM_BYTES and math.prod(shape) * ITEM_BYTES[kind] == size))


def end_of(entries: np.ndarray) -> int:
    """The size in bytes of the records of `entries`."""
    return int(entries["end"][-1]) if len(entries) else 0


def append_pictures(
    images: Images, packing: Packing, numbers: Iterable[int], entries: np.ndarray, records: int, journal: int
) -> tuple[np.ndarray, dict[int, str]]:
    """Pack the images `numbers` after those of `entries` (ENTRY [K]).

    records, journal: descriptors, truncated to `entries` and open for appending. Returns all entries, and the error of each damaged
    image of `numbers`. Raises OSError, as on a full disk; what was written before stays valid.
    """
    made, damaged, end = [entries], {}, end_of(entries)

    def look(i: int) -> PackRecord | str:
        try:
            return record_of(images, i, packing)
        except DamagedImage as error:
            return str(error)

    with ThreadPoolExecutor(THREADS) as threads:
        for chunk in in_groups(numbers, AT_ONCE):
            contents, new = [], np.zeros(len(chunk), ENTRY)
            for k, (i, found) in enumerate(zip(chunk, threads.map(look, chunk), strict=True)):
                if isinstance(found, str):
                    damaged[i] = found
                    found = PackRecord(b"", DAMAGED, (0, 0, 0))
                end += len(found.content)
                contents.append(found.content)
                new[k] = (end, checksum(found.content), found.kind, found.shape, 0)
                new[k]["entry"] = checksum(new[k].tobytes()[:-4])
            write_all(records, b"".join(contents))
            write_all(journal, new.tobytes())
            made.append(new)
    return np.concatenate(made), damaged


def read_again(images: Images, entries: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """`entries` before the first damaged image that can be read now, and the error of each damaged image before it.

    Damaged images are tried again, since otherwise a temporary error (of a network, say) would stay in the pack.
    """
    sentences: dict[int, str] = {}
    for i in (entries["kind"] == DAMAGED).nonzero()[0].tolist():
        try:
            images.read(i)
        except DamagedImage as error:
            sentences[i] = str(error)
        else:
            return entries[:i], sentences
    return entries, sentences


def in_groups(numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    chunk: list[int] = []
    for number in numbers:
        chunk.append(number)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def write_all(descriptor: int, content: bytes) -> None:
    """Append all of `content`. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
