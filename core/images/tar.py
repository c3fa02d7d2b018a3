"""`tar:`: pictures read in place out of an archive, through an index of offsets that is made once.

A compressed archive has no random access, so it is unpacked (to one .tar, not to files) into the cache, once.
"""

import bz2
import errno
import gzip
import json
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from .cache import cache_folder, entry_name, file_stamp, made_once, recall, remember
from .decode import is_picture
from .files import FileStore, arrange, is_visible, printable
from .store import Source

COMPRESSIONS: dict[bytes, Callable[[str], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class TarStore(FileStore):
    """Members of an archive at `offsets` (bytes, int64 [N]). The names are those of the members, relative to `root`."""

    kind = "tar"

    def __init__(self, archive: str, unpacked: str, names: list[str], offsets: np.ndarray, stamps: np.ndarray) -> None:
        super().__init__(archive, names, stamps)
        self.unpacked, self.offsets = unpacked, offsets
        self._descriptors: dict[int, int] = {}

    def content(self, i: int) -> bytes:
        # pread has no common position, so threads can share the descriptor
        content = os.pread(self.descriptor(), self.size(i), int(self.offsets[i]))
        if len(content) < self.size(i):
            raise OSError(f"the archive ends {self.size(i) - len(content)} bytes too early")
        return content

    def descriptor(self) -> int:
        """The archive, opened once a process."""
        process = os.getpid()
        if process not in self._descriptors:
            opened = os.open(self.unpacked, os.O_RDONLY | os.O_CLOEXEC)
            if self._descriptors.setdefault(process, opened) != opened:  # another thread was faster
                os.close(opened)
        return self._descriptors[process]

    def where(self, i: int) -> str:
        return printable(f"{self.root}!{self.names[i]}")

    def identity(self) -> str:
        return entry_name(super().identity(), self.offsets.tolist())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}

    def __del__(self) -> None:
        opened = getattr(self, "_descriptors", {}).get(os.getpid())
        if opened is not None:
            os.close(opened)


def open_tar(path: str, split: str | None, *, under: str = "", labels: str = "folders") -> Source:
    """tar:PATH (.tar, .tar.gz, .tar.bz2, .tar.xz). `under` is a folder inside to stay in; otherwise like `folder:`."""
    title, archive = f"tar:{path}", Path(path).expanduser()
    if not archive.is_file():
        remedy = f"it is a folder: open it as folder:{path}" if archive.is_dir() else "check the path"
        raise UserError(f"{title}: there is no such archive; {remedy}")
    stamp = file_stamp(archive)
    unpacked = unpack(archive, stamp, title)
    members = index(unpacked, archive, stamp, title)
    inside = under.strip("/") + "/" if under.strip("/") else ""
    place = f"{printable(path)}!{inside}"
    found = {name[len(inside) :]: span for name, span in members.items() if name.startswith(inside)}
    layout = arrange(filter(is_visible, found), labels, title, place)
    spans = np.array([found[layout.prefix + name] for name in layout.names], dtype=np.int64)
    stamps = np.column_stack([spans[:, 1], np.full(len(spans), stamp[1]), np.full(len(spans), stamp[2])])
    return layout.source(TarStore(str(archive), str(unpacked), layout.names, spans[:, 0], stamps))


def unpack(archive: Path, stamp: tuple[int, int, int], title: str) -> Path:
    """The archive itself, or its uncompressed copy in the cache."""
    try:
        with open(archive, "rb") as file:
            start = file.read(6)
    except OSError as error:
        raise UserError(f"{title}: cannot be opened ({error.strerror}); check its permissions") from None
    opener = next((opener for magic, opener in COMPRESSIONS.items() if start.startswith(magic)), None)
    if opener is None:
        return archive

    def decompress(target: BinaryIO) -> None:
        try:
            with opener(str(archive)) as source:
                shutil.copyfileobj(source, target, 1 << 20)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise UserError(f"{title}: the archive is damaged or cut short ({error}); fetch it again") from None

    name = entry_name(os.path.abspath(archive), stamp)
    try:
        return made_once(cache_folder("archives") / f"{name}.tar", decompress)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"{title}: cannot be unpacked to {cache_folder('archives')} ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that can be written, or unpack it by hand and open the .tar"
        ) from None


def index(unpacked: Path, archive: Path, stamp: tuple[int, int, int], title: str) -> dict[str, tuple[int, int]]:
    """Picture members, name to (offset, size) in bytes; from the cache if the archive is as it was."""
    name = entry_name(os.path.abspath(archive), stamp)
    remembered = recall("indices", name)
    if remembered is not None:
        return {os.fsdecode(key.encode("latin-1")): span for key, span in json.loads(remembered).items()}
    members = scan(unpacked, title)
    listed = {os.fsencode(key).decode("latin-1"): span for key, span in members.items()}
    remember("indices", name, json.dumps(listed).encode(), max(stamp[1:]))
    return members


def scan(unpacked: Path, title: str) -> dict[str, tuple[int, int]]:
    """Read the headers of an archive. Of several members of one name the last counts, as when unpacking."""
    total = unpacked.stat().st_size
    spans: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(unpacked, "r:") as archive:
            for member in archive:
                name = os.path.normpath(member.name).replace(os.sep, "/").lstrip("/")
                if member.islnk():  # a second name of an earlier member
                    target = os.path.normpath(member.linkname).replace(os.sep, "/").lstrip("/")
                    if is_picture(name) and target in spans:
                        spans[name] = spans[target]
                elif member.isreg() and is_picture(name):
                    spans[name] = (member.offset_data, member.size)
                    if member.offset_data + member.size > total:
                        raise UserError(f"{title}: the archive is cut short in {printable(name)}; fetch it again")
                # tarfile keeps every header it has seen; a million of them would stay in memory
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
    except tarfile.TarError as error:
        raise UserError(
            f"{title}: not a readable archive ({error}); expected .tar, .tar.gz, .tar.bz2 or .tar.xz"
        ) from None
    return spans
