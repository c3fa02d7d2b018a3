"""The cache between runs: hashes of files, indices of archives, uncompressed archives.

The cache can be deleted at any time. An entry is named by a hash of everything it depends on (paths, sizes, times of change),
so a changed file has no entry. Each entry carries a checksum, so a damaged one is made again.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ..files import read_regular
from ..launchlog import warn
from .sums import SummingWriter, sums_file

SETTLED_SECONDS = 2.0
"""File systems have coarse clocks: a file written so recently could change again without a new time of change."""


def cache_folder(kind: str) -> Path:
    """XDG_CACHE_HOME/rootstock/KIND (~/.cache/rootstock/KIND by default); it may not exist."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "rootstock" / kind


def entry_name(*parts: object) -> str:
    """The file name of an entry that depends on `parts` (JSON values)."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


def file_stamp(path: str | Path) -> tuple[int, int, int]:
    """(size, mtime, ctime) of a file, times in ns. The ctime is needed since a copy can keep the mtime of the original."""
    return stamp_of(os.stat(path))


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """`file_stamp` of a status that is known already."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def recall(kind: str, name: str) -> bytes | None:
    """The cached bytes, or None if there are none or they are damaged."""
    path = cache_folder(kind) / name
    try:
        content = read_entry(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        warn(f"WARNING: {path} is not used ({error.strerror}); it is made again")
        return None
    return content


def read_entry(path: Path) -> bytes:
    """The bytes of an entry of the cache. Raises OSError, also if they differ from their checksum."""
    content = read_regular(path)
    checksum, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != checksum:
        raise OSError(errno.EIO, "its content differs from its digest", str(path))
    return content


def remember(kind: str, name: str, content: bytes, newest_ns: int) -> None:
    """Cache bytes under a name. newest_ns: the latest time of change of the files that they were made from.

    If the cache cannot be written (read-only home, full disk), the next run is slower, but this one goes on.
    """
    if time.time_ns() - newest_ns < SETTLED_SECONDS * 1e9:
        return
    with contextlib.suppress(OSError), replacing(cache_folder(kind) / name) as file:
        file.write(hashlib.sha256(content).digest() + content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def made_once(path: Path, make: Callable[[BinaryIO], None]) -> Path:
    """`path`, made by `make` if it doesn't exist; if several processes call this at once, one makes it and the others wait.

    Its checksums lie beside it (`Sums`); a file without them, as earlier versions left it, is made again.
    """
    for one in (path, sums_file(path)):
        if one.is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{one} is a folder; delete it", str(one))
    if not (path.exists() and sums_file(path).exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        # the kernel releases an flock however its owner ends, so a killed process leaves no stale lock
        with open(path.with_name(path.name + ".lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path.exists() and sums_file(path).exists()):
                with replacing(path) as file:
                    writer = SummingWriter(file)
                    make(cast("BinaryIO", writer))
                    with replacing(sums_file(path)) as sums:
                        sums.write(writer.packed())
    return path
