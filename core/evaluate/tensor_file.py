"""One tensor as a safetensors file that is written by rows, in any order, and then mapped: it may be larger than the memory.

Whoever writes or maps such a file holds a shared lock on it until the last tensor that uses it is gone, however the process ends. So a
file whose lock is free belongs to nobody.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import mmap
import os
import stat
import struct
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..phase import note_progress

NAME = "features"
"""The name of the tensor in its file."""

CODES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
"""How safetensors spells the dtypes."""

ALIGNED = 64
CHUNK = 8 << 20
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # Python names it from 3.13 on


class TensorFile:
    """A new file for a tensor [n, ...]. It has its full size from the start; `reserve` takes the room from the disk."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Quick, whatever the size. Raises OSError; then nothing is left of the file."""
        self.path, self.shape, self.dtype = path, shape, dtype
        header = _header(shape, dtype)
        self.start, self.row = len(header), math.prod(shape[1:]) * dtype.itemsize
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            share_lock(self.handle)
            os.ftruncate(self.handle, self.start + shape[0] * self.row)
            os.pwrite(self.handle, header, 0)
        except BaseException:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def reserve(self) -> None:
        """Take the whole room from the disk, so that a full disk is noticed before any work. Raises OSError."""
        if sys.platform == "linux":  # where there is no such call, a full disk is noticed later
            os.posix_fallocate(self.handle, 0, self.start + self.shape[0] * self.row)

    def put(self, start: int, rows: Tensor) -> None:
        """Write rows, [m, ...] of the file's dtype on the CPU, from row `start` on. Raises OSError."""
        content = rows.contiguous().flatten().view(torch.uint8).numpy().data
        place = self.start + start * self.row
        while len(content):
            count = os.pwrite(self.handle, content, place)
            place, content = place + count, content[count:]

    def sync(self) -> None:
        """Write to disk what is not there yet. Raises OSError."""
        os.fsync(self.handle)

    def digest(self) -> str:
        """sha256 of the whole file, as it can be read now. Raises OSError."""
        return _digest(self.handle)

    def close(self) -> None:
        os.close(self.handle)


def tensor_file_size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of the file of such a tensor."""
    return len(_header(shape, dtype)) + math.prod(shape) * dtype.itemsize


def opened_tensor(path: Path) -> int:
    """A descriptor of a file that is read, with the lock of those who use it. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        share_lock(handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def mapped(file: Path | int, shape: tuple[int, ...], dtype: torch.dtype, digest: str | None = None) -> Tensor:
    """The tensor in a file, mapped: its numbers are read when they are used. Writing to the tensor does not change the file.

    file: the path, or what `opened_tensor` gave, which is closed. digest: sha256 that the whole file must have; it is read for that.
    Raises OSError, also for a file of another size or digest.
    """
    handle = opened_tensor(file) if isinstance(file, Path) else file
    try:
        size, actual = tensor_file_size(shape, dtype), os.fstat(handle).st_size
        if actual != size:
            raise OSError(errno.EIO, f"it has {actual} bytes instead of {size}")
        if digest is not None and _digest(handle) != digest:
            raise OSError(errno.EIO, "its sha256 differs from that in its manifest")
        # Private, so that nobody writes to the file by mistake; without a reserve, since it may be larger than the memory. The mapping
        # has a descriptor of its own, with the same lock.
        view = mmap.mmap(handle, size, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(handle)
    offset = size - math.prod(shape) * dtype.itemsize
    return torch.frombuffer(view, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)


def share_lock(handle: int) -> None:
    """Take the lock that says that a file is in use. A file system without locks is used without."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # somebody is deleting it
        raise OSError(errno.ENOENT, "it is being deleted") from None
    except OSError:
        pass


def unused(path: Path) -> bool:
    """Whether nobody writes or maps a file: then it may be deleted. Raises OSError."""
    handle = open_for_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def open_for_lock(path: Path, flags: int = 0) -> int:
    """A descriptor for a lock of one's own: NFS gives one only where the file could be written. Raises OSError."""
    flags |= os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would be waited for
    try:
        return os.open(path, os.O_RDWR | flags, 0o666)
    except PermissionError:  # somebody else's file; most file systems lock it nevertheless
        return os.open(path, os.O_RDONLY | flags & ~os.O_CREAT)


def _header(shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    size = math.prod(shape) * dtype.itemsize
    text = json.dumps({NAME: {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [0, size]}}).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    return struct.pack("<Q", len(text)) + text


def _digest(handle: int) -> str:
    found, place = hashlib.sha256(), 0
    room = memoryview(bytearray(CHUNK))
    while count := os.preadv(handle, [room], place):
        found.update(room[:count])
        place += count
        note_progress()  # a file of many gigabytes takes minutes
    return found.hexdigest()
