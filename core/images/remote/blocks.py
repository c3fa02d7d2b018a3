"""The cache of objects' blocks on this machine: bounded, shared by processes, checked at each read.

    objects/OBJECT/0000012         a block of an object: pages of its bytes, each with its CRC-32 behind it
    objects/OBJECT/copy.rows       an unpacked copy (with its .sums): only as a whole, and kept while somebody holds it
    objects/locks/00 ... ff        locks: one process fetches what several want

What was not used for longest is deleted first. OBJECT depends on address, size and version, so that another version has no block.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import MachineError, UserError
from ..cache import cache_folder, entry_name, replacing
from ..limits import size_of, sized
from ..open_files import Descriptor
from .client import RemoteObject

BLOCK, PAGE, SUM = 4 << 20, 1 << 12, 4
"""Bytes of an object in a block, of a block in a page, of a checksum. A block is one request; a small picture touches one or two pages."""

RESIDUE = 0x2144DF1C
"""The CRC-32 of anything that its own CRC-32 follows."""

OPEN_BLOCKS = 192
USED_AGAIN = 600.0
"""Seconds after which a further use of a block is noted on disk."""

FORGOTTEN = 3600.0
"""Seconds after which a half-written file counts as left by a process that was killed."""

DEFAULT_MOST = "20GB"


def most_of(text: str, title: str) -> int:
    """The bound that ?cache= gives, in bytes. Raises UserError."""
    return size_of(text, f"{title}: cache")


def bound_of(most: int) -> str:
    """A bound as ?cache= reads it."""
    return sized(most) if most else "0"


def stored_form(content: bytes) -> bytes:
    """Pages with their checksums."""
    parts: list[bytes] = []
    for start in range(0, len(content), PAGE):
        page = content[start : start + PAGE]
        parts += [page, zlib.crc32(page).to_bytes(SUM, "little")]
    return b"".join(parts)


def checked_part(stored: bytes, start: int, end: int) -> bytes | None:
    """The bytes [start, end) after the beginning of the first page, from the stored form of pages; None if one has changed.

    Called for each picture, so it does nothing twice.
    """
    if end <= PAGE:
        return stored[start:end] if zlib.crc32(stored) == RESIDUE and len(stored) >= end + SUM else None
    view, pages = memoryview(stored), list[memoryview]()
    for at in range(0, len(stored), PAGE + SUM):
        page = view[at : at + PAGE + SUM]
        if zlib.crc32(page) != RESIDUE:
            return None
        pages.append(page[:-SUM])
    content = b"".join([pages[0][start:], *pages[1:]]) if pages else b""
    return content[: end - start] if len(content) >= end - start else None


class OpenBlock(Descriptor):
    """A block that is open for reading. noted: when its use is noted on disk again, by the monotonic clock."""

    noted = 0.0


class BlockCache:
    """The blocks of objects in the cache of this user. most: their bytes in all, at which older ones are deleted; 0 keeps none."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[tuple[str, int], OpenBlock] = {}
        self._folders: dict[RemoteObject, str] = {}
        self._unchecked = 0

    @property
    def folder(self) -> Path:
        return cache_folder("objects")

    def folder_of(self, one: RemoteObject) -> str:
        if one not in self._folders:
            self._folders[one] = str(self.folder / entry_name(one.url, one.size, one.tag))
        return self._folders[one]

    def read(self, one: RemoteObject, number: int, start: int, end: int) -> bytes | None:
        """The bytes [start, end) of a block; None if it is not there, or damaged."""
        opened = self._open.get((one.url, number)) or self._opened(one, number)
        if opened is None:
            return None
        now = time.monotonic()
        if now > opened.noted:
            opened.noted = now + USED_AGAIN
            with contextlib.suppress(OSError):  # deleted meanwhile
                os.utime(opened.number)
        first = start // PAGE
        size = ((end - 1) // PAGE - first + 1) * (PAGE + SUM)
        try:
            stored = os.pread(opened.number, size, first * (PAGE + SUM))
        except OSError:
            stored = b""
        content = checked_part(stored, start - first * PAGE, end - first * PAGE)
        if content is None:  # or another file has its name now
            self._open.pop((one.url, number), None)
        return content

    def _opened(self, one: RemoteObject, number: int) -> OpenBlock | None:
        """A block in the cache, open for reading; None if it isn't there. Of those that are open, the first is closed."""
        try:
            opened = OpenBlock(f"{self.folder_of(one)}/{number:07d}")
        except OSError:
            return None
        self._open[one.url, number] = opened
        with contextlib.suppress(RuntimeError, StopIteration):  # other threads change the table too
            while len(self._open) > OPEN_BLOCKS:
                self._open.pop(next(iter(self._open)), None)
        return opened

    def keep(self, one: RemoteObject, number: int, content: bytes) -> None:
        """Store a block. Raises MachineError if the cache cannot be written."""
        if self._unchecked <= 0:
            self.make_room(len(content))
            self._unchecked = self.most // 64  # the bound is exceeded by no more, in each process
        self._unchecked -= len(content)
        with self.writing(), replacing(Path(self.folder_of(one)) / f"{number:07d}") as file:
            file.write(stored_form(content))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within it, an error of the disk is a sentence."""
        try:
            yield
        except OSError as error:
            raise MachineError(
                f"{self.folder}: the cache of objects cannot be written ({error.strerror or error}); free some space, set XDG_CACHE_HOME "
                "to a folder that can be written, or add ?cache=0, which reads without it"
            ) from None

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Within it, no other thread or process is where it gives the same name (or, rarely, another one)."""
        # opened anew, since threads of a process share the locks of one opened file
        folder = self.folder / "locks"
        with self.writing():
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / f"{zlib.crc32(name.encode()) % 256:02x}", "wb")  # noqa: SIM115
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file open too

    def make_room(self, wanted: int) -> None:
        """Delete what was not used for longest until `wanted` bytes more fit; what others hold stays."""
        found = stored_files(self.folder)
        total = sum(size for _, size, _ in found) + wanted
        for used, size, path in sorted(found):
            if total <= self.most:
                break
            if not is_held(path) and not (path.endswith(".part") and time.time() - used < FORGOTTEN):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    total -= size

    def copy_place(self, one: RemoteObject, ending: str) -> Path:
        """Where an unpacked copy of an object is kept."""
        return Path(self.folder_of(one)) / f"copy{ending}"

    def check_copy(self, size: int, title: str) -> None:
        """Raises UserError if a copy of so many bytes is larger than all that may be kept."""
        if size > self.most:
            raise UserError(
                f"{title}: reading it needs a copy of {sized(size)} or more on this machine, and ?cache= allows {bound_of(self.most)}; "
                f"add ?cache={sized(3 * size)}, or make a pack of it, which is read in place"
            )


def stored_files(folder: Path) -> list[tuple[float, int, str]]:
    """(when it was last used, size, path) of what lies in the folders of objects; other processes may delete meanwhile."""
    found: list[tuple[float, int, str]] = []
    with contextlib.suppress(OSError), os.scandir(folder) as objects:
        for one in objects:
            if one.name == "locks":
                continue
            with contextlib.suppress(OSError), os.scandir(one.path) as files:
                for file in files:
                    with contextlib.suppress(OSError):
                        status = file.stat()
                        found.append((status.st_mtime, status.st_size, file.path))
    return found


class Held:
    """Copies in the cache that are not deleted while this object lives. They can be pickled: the copy takes hold of them, too."""

    def __init__(self, paths: tuple[str, ...] = ()) -> None:
        self.paths = paths
        self._open: list[Descriptor] = []
        for path in paths:
            self._take(path)

    def add(self, path: Path) -> None:
        self.paths += (str(path),)
        self._take(str(path))

    def _take(self, path: str) -> None:
        file = Descriptor(path)
        fcntl.flock(file.number, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            os.utime(file.number)  # it is in use
        self._open.append(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return Held, (self.paths,)


def is_held(path: str) -> bool:
    """Whether somebody holds a copy, or the one that checksums belong to."""
    try:
        with open(path.removesuffix(".sums"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False
