"""Checksums of a large file in the cache, block by block, so that each read is checked without reading the whole file.

NAME.sums lies beside NAME and holds a SHA-256 of the rest, then the CRC-32 of each block of NAME.
"""

import errno
import hashlib
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .open_files import OpenFiles

SUMMED = 1 << 16
"""Bytes of a block: a member of an archive is checked by reading at most two blocks more than it has."""


def sums_file(path: Path) -> Path:
    return path.with_name(path.name + ".sums")


class SummingWriter:
    """Passes bytes on to a file and takes the checksum of each block."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sums: list[int] = []
        self._sum, self._room = 0, SUMMED

    def write(self, content: bytes) -> int:
        rest = memoryview(content)
        while len(rest):
            part, rest = rest[: self._room], rest[self._room :]
            self._sum = zlib.crc32(part, self._sum)
            self._room -= len(part)
            if not self._room:
                self.sums.append(self._sum)
                self._sum, self._room = 0, SUMMED
        return self.file.write(content)

    def packed(self) -> bytes:
        """The content of the file of checksums, when all is written."""
        last = [self._sum] if self._room < SUMMED else []
        block = np.array([*self.sums, *last], dtype="<u4").tobytes()
        return hashlib.sha256(block).digest() + block


class Sums:
    """The checksums of the file `path`, which is read through them."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if there are none, or if they are damaged."""
        content = sums_file(path).read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise OSError(errno.EIO, f"{sums_file(path)} is damaged; delete it", str(path))
        self.path, self.sums = path, np.frombuffer(content[32:], dtype="<u4")

    def read(self, files: OpenFiles, size: int, offset: int) -> bytearray:
        """Read `size` bytes from `offset` on. Raises OSError, also if a block that they touch has changed."""
        total = self.path.stat().st_size
        start, end = offset // SUMMED * SUMMED, min(-(-(offset + size) // SUMMED) * SUMMED, total)
        content = files.read(str(self.path), max(end - start, offset + size - start), start)
        view = memoryview(content)
        for k in range(0, len(content), SUMMED):
            number = (start + k) // SUMMED
            if number >= len(self.sums) or zlib.crc32(view[k : k + SUMMED]) != self.sums[number]:
                raise OSError(errno.EIO, f"its unpacked copy {self.path} has changed; delete that file", str(self.path))
        return content[offset - start : offset - start + size]

    def check(self) -> None:
        """Read the whole file. Raises OSError if a block has changed, or the size has."""
        total, files = self.path.stat().st_size, OpenFiles()
        if -(-total // SUMMED) != len(self.sums):
            raise OSError(
                errno.EIO, f"its unpacked copy {self.path} has another size; delete that file", str(self.path)
            )
        for start in range(0, total, 64 * SUMMED):
            self.read(files, min(64 * SUMMED, total - start), start)
