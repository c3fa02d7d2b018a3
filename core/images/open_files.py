"""Reading parts of a few large files: archives and packs. Descriptors are opened when needed, and not too many at once."""

import contextlib
import os
from typing import Any


class Descriptor:
    """A file open for reading, closed when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.number = -1  # where opening fails, there is nothing to close
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class OpenFiles:
    """Files by path, of which at most `limit` stay open: the ones read last.

    Threads may share it without a lock (a lock held while the process forks would never open in the child), and so may
    forked processes: positions are given with each read, none is kept. Pickles without the files.
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._open: dict[str, Descriptor] = {}

    def read(self, path: str, size: int, offset: int) -> bytearray:
        """`size` bytes of a file from `offset` on. Raises OSError, also where the file ends before them."""
        descriptor = self._descriptor(path)  # this reference keeps it open while another thread drops it from the table
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
        self._open[path] = descriptor  # the last one of a dict is the youngest
        # another thread may change the table between two calls here; the next read tidies up then
        with contextlib.suppress(RuntimeError, StopIteration):
            while len(self._open) > self.limit:
                self._open.pop(next(iter(self._open)), None)
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "_open": {}}
