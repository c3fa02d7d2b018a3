"""Reads parts of large files (archives and packs). Files are opened when needed, and only a limited number stays open."""

import contextlib
import os
import stat
from typing import Any

MAX_BYTES = 1 << 30
"""A picture's file has at most 1 GiB: more than the pixels of the largest picture that is decoded (`MAX_PIXELS`), in any format."""


def open_regular(path: str) -> int:
    """A descriptor of a regular file, open for reading. Raises OSError, also for a pipe, a socket, a device or a folder.

    Opening a pipe would wait for a writer, and a device may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor


def read_whole(path: str) -> bytes:
    """The bytes of a regular file. Raises OSError, also if it has more than MAX_BYTES."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > MAX_BYTES:
            raise OSError(f"{size:,} bytes, more than a picture's file may have ({MAX_BYTES:,})")
        content = os.read(descriptor, size + 1)  # one more, to see the end in the same call
        if len(content) == size:
            return content
        parts, total = [content], len(content)
        while (part := os.read(descriptor, 1 << 20)) and total <= MAX_BYTES:  # it grows, or is read in pieces
            parts.append(part)
            total += len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


class Descriptor:
    """A file open for reading, closed when the last reference is dropped."""

    def __init__(self, path: str) -> None:
        self.number = -1  # if opening fails, there is nothing to close
        self.number = open_regular(path)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class OpenFiles:
    """Files by path; at most `limit` stay open, those read last.

    Threads can share it without a lock (a lock held during a fork would stay locked in the child). Forked processes can share it
    too, since every read gives its position. Pickling leaves out the open files.
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._open: dict[str, Descriptor] = {}

    def read(self, path: str, size: int, offset: int) -> bytearray:
        """Read `size` bytes of a file from `offset` on. Raises OSError, also if the file is too short, or if these are too many."""
        if size > MAX_BYTES:
            raise OSError(f"{size:,} bytes, more than a picture's file may have ({MAX_BYTES:,})")
        descriptor = self._descriptor(path)  # this reference keeps it open if another thread drops it from the table
        content = bytearray(size)
        view, done = memoryview(content), 0
        while done < size:
            count = os.preadv(descriptor.number, [view[done:]], offset + done)
            if count == 0:
                raise OSError(f"{path} ends {size - done} bytes too early")
            done += count
        return content

    def _descriptor(self, path: str) -> Descriptor:
        descriptor = self._open.pop(path, None) or Descriptor(path)
        self._open[path] = descriptor  # dicts keep insertion order: the last one was used last
        # another thread may change the table meanwhile; then the next read closes what is too many
        with contextlib.suppress(RuntimeError, StopIteration):
            while len(self._open) > self.limit:
                self._open.pop(next(iter(self._open)), None)
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "_open": {}}
