"""Reads parts of objects, through the cache where it has room for them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from weakref import WeakSet

from ...errors import UserError
from ..limits import sized
from ..notes import Note
from ..open_files import MAX_BYTES
from ..places import abridged
from .blocks import BLOCK, BlockCache, bound_of
from .client import RemoteObject, below, found_object, matching, part_of_object

ASKING_THREADS, BLOCKS_AHEAD = 8, 4


OPEN_READERS: WeakSet[ObjectReader] = WeakSet()
"""Those of this process: sets that share the cache."""


class ObjectReader:
    """Reads parts of some objects.

    If the cache has room for all of them, beside those of other open sets that are read through it, they are fetched in blocks of 4 MiB,
    each once. Else just what is asked for is fetched, and nothing is kept: a block would be deleted before its next picture is read.
    """

    def __init__(self, objects: Sequence[RemoteObject], most: int, cached: bool | None = None) -> None:
        """cached: whether the cache is used, as a copy in another process has to know; None to decide it."""
        self.objects = tuple(objects)
        self.cache = BlockCache(most)
        self.by_url = {one.url: one for one in self.objects}
        self.total = sum(one.size for one in self.objects)
        others = {one for reader in tuple(OPEN_READERS) if reader.cached for one in reader.objects}
        self.beside = sum(one.size for one in others - set(self.objects))
        self.cached = self.total > 0 and self.total + self.beside <= most if cached is None else cached
        OPEN_READERS.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectReader, (self.objects, self.cache.most, self.cached)

    def read(self, url: str, size: int, offset: int) -> bytes:
        """Read `size` bytes from `offset` on. Raises OSError if there are not so many, ObjectError if they cannot be fetched."""
        one, end = self.by_url[url], offset + size
        if size > MAX_BYTES or end > one.size:
            what = f"{url} ends {end - one.size} bytes too early" if end > one.size else f"{size:,} bytes are too many"
            raise OSError(what)
        if not size:
            return b""
        if not self.cached:
            return part_of_object(one, offset, end)
        first, start = divmod(offset, BLOCK)
        if start + size <= BLOCK:
            return self.of_block(one, first, start, start + size)
        return b"".join(
            self.of_block(one, number, max(0, offset - number * BLOCK), min(BLOCK, end - number * BLOCK))
            for number in range(first, (end - 1) // BLOCK + 1)
        )

    def of_block(self, one: RemoteObject, number: int, start: int, end: int) -> bytes:
        """The bytes [start, end) of a block."""
        return self.cache.read(one, number, start, end) or self._fetched(one, number, start, end)

    def _fetched(self, one: RemoteObject, number: int, start: int, end: int) -> bytes:
        """The same of a block that isn't in the cache, or is damaged there."""
        with self.cache.alone(f"{one.url} {number}"):
            content = self.cache.read(one, number, start, end)  # another one fetched it meanwhile
            if content is not None:
                return content
            whole = part_of_object(one, number * BLOCK, min((number + 1) * BLOCK, one.size))
            self.cache.keep(one, number, whole)
        return whole[start:end]

    def notes(self) -> list[Note]:
        """What is worth saying about how the objects are read."""
        if self.cached or not self.total:
            return []
        beside = f" beside {sized(self.beside)} of other sets" if self.total <= self.cache.most else ""
        what = (
            f"objects of {sized(self.total)} in all, more than the cache may hold{beside} (?cache={bound_of(self.cache.most)}), "
            "so each picture is fetched each time"
        )
        return [Note(len(self.objects), what, self.objects[0].url, "say")]

    def opened(self, url: str) -> io.BufferedReader:
        """An object as a file that is open for reading."""
        return io.BufferedReader(_Raw(self, self.by_url[url]), 1 << 16)


class _Raw(io.RawIOBase):
    """An object as a file. Who reads it forwards finds the next blocks in the cache; without the cache, one piece is kept in memory."""

    def __init__(self, reader: ObjectReader, one: RemoteObject) -> None:
        super().__init__()
        self.reader, self.one, self.at = reader, one, 0
        self.begin, self.piece = 0, b""
        self._block, self._streak, self._ordered = 0, 0, 0
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.one.size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the beginning")
        self.at = base + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, room: Any) -> int:
        view = memoryview(room).cast("B")
        count = max(0, min(len(view), self.one.size - self.at))
        if not count:
            return 0
        if self.reader.cached:
            self._order((self.at + count - 1) // BLOCK)
            view[:count] = self.reader.read(self.one.url, count, self.at)
        else:
            view[:count] = self._ahead(count)
        self.at += count
        return count

    def _order(self, block: int) -> None:
        """Fetch the blocks behind this one at the same time, if it is the third of three in a row: one stream is slow."""
        if block == self._block:
            return
        self._streak = self._streak + 1 if block == self._block + 1 else 0
        self._block = block
        end = min(block + BLOCKS_AHEAD, (self.one.size - 1) // BLOCK) + 1
        if self._streak < 2 or end <= max(self._ordered, block + 1):
            return
        self._threads = self._threads or ThreadPoolExecutor(BLOCKS_AHEAD)
        for number in range(max(self._ordered, block + 1), end):
            # an error is raised where the block is read
            self._threads.submit(self.reader.of_block, self.one, number, 0, 1)
        self._ordered = end

    def _ahead(self, count: int) -> bytes:
        if not self.begin <= self.at <= self.at + count <= self.begin + len(self.piece):
            self.begin = self.at
            self.piece = part_of_object(self.one, self.at, min(self.at + max(count, BLOCK), self.one.size))
        return self.piece[self.at - self.begin : self.at - self.begin + count]


class RemoteArchive:
    """An object in the place of an archive's file: what tar.py, unpack.py and parquet.py ask of either."""

    def __init__(self, one: RemoteObject, reader: ObjectReader) -> None:
        self.object, self.reader = one, reader
        self.name = self.shown = one.url
        self.stamp, self.size = one.stamp, one.size
        self.path: PurePath = PurePosixPath(one.url)

    def open(self) -> io.BufferedReader:
        return self.reader.opened(self.object.url)

    def place_of_copy(self, name: str, ending: str) -> Path:
        return self.reader.cache.copy_place(self.object, f"-{name[:16]}{ending}")

    def check_copy(self, size: int, title: str) -> None:
        """Raises UserError if the cache may not keep a copy of so many bytes, and makes room for it otherwise."""
        self.reader.cache.check_copy(size, title)
        self.reader.cache.make_room(size)


def objects_named(addresses: Sequence[str], title: str) -> list[RemoteObject]:
    """The objects at addresses, which may have * and [..]. Raises UserError for one that isn't there, or if one is named twice."""

    def named(address: str) -> list[RemoteObject]:
        if "*" not in address and "[" not in address:
            return [found_object(address)]
        if not (found := matching(address)):
            raise UserError(f"{title}: no object is called {abridged(address)}; check the address")
        return found

    with ThreadPoolExecutor(ASKING_THREADS) as threads:
        found = [one for group in threads.map(named, addresses) for one in group]
    if len({one.url for one in found}) < len(found):
        raise UserError(f"{title}: it names an object twice, so its pictures would count double")
    return found


def objects_below(address: str, ending: str, title: str) -> list[RemoteObject]:
    """The objects below an address with this ending. Raises UserError if there are none."""
    found = below(address, ending)
    if not found:
        raise UserError(f"{title}: no object below {abridged(address)} ends in {ending}; check the address")
    return found
