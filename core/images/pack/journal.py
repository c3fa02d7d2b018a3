"""The records of a pack that is being made, and the journal that says how far they are good.

An entry is written after its record, and carries checksums of both: whatever an interruption leaves behind (half a record, half an
entry, holes after a power failure) ends the part that is trusted.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..images import Images
from ..store import DamagedImage
from .reader import RECORDS, checksum
from .record import Packing, PackRecord, record_of

JOURNAL = "journal.bin"
DAMAGED = 255
"""The kind of an entry for a picture that cannot be read; it has no record."""

ENTRY = np.dtype([("end", "<i8"), ("record", "<u4"), ("kind", "<u4"), ("shape", "<i4", 3), ("entry", "<u4")])
"""One picture: where its record ends, the record's checksum, its kind, (C, H, W), and the checksum of the entry itself."""

THREADS, AT_ONCE = 4, 64
"""Pictures are decoded by so many threads, so many at a time: what is in memory stays bounded."""


def trusted_entries(part: Path) -> np.ndarray:
    """The journal's entries (ENTRY [K]) up to the first that is torn or wrong, or whose record is not what was written."""
    content = (part / JOURNAL).read_bytes()
    entries = np.frombuffer(content[: len(content) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)
    with open(part / RECORDS, "rb") as records:
        start = 0
        for k, entry in enumerate(entries):
            if checksum(entry.tobytes()[:-4]) != entry["entry"] or entry["end"] < start:
                return entries[:k]
            size = int(entry["end"]) - start
            record = records.read(size)
            if len(record) < size or checksum(record) != entry["record"]:
                return entries[:k]
            start += size
    return entries


def end_of(entries: np.ndarray) -> int:
    """How many bytes the records of `entries` take."""
    return int(entries["end"][-1]) if len(entries) else 0


def append_pictures(
    images: Images, packing: Packing, numbers: Iterable[int], entries: np.ndarray, records: int, journal: int
) -> tuple[np.ndarray, dict[int, str]]:
    """Pack the pictures `numbers` behind those of `entries` (ENTRY [K]).

    records, journal: descriptors, cut to `entries` and open for appending. Returns all entries, and what is wrong with the
    damaged among `numbers`. Raises OSError, as on a full disk; what is written until then stays good.
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
    """`entries` up to the first damaged picture that can be read by now, and what is wrong with the damaged before it.

    An error of a network or a cable would stay in the pack for good if the journal were believed in this.
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
