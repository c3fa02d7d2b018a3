"""`tar:`: images read directly from archives, by an index of offsets that is made once.

A compressed archive has no random access, so it is decompressed once (to a .tar, not to files) into the cache.
"""

import bz2
import dataclasses
import errno
import gzip
import itertools
import json
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ..cache import cache_folder, entry_name, file_stamp, made_once, recall, remember
from ..decode import is_picture
from ..open_files import OpenFiles
from ..store import Source
from .files import FileStore, arrange, is_visible, printable
from .shards import archives_of, pattern_name

COMPRESSIONS: dict[bytes, Callable[[str], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
INDEXING_THREADS = 8

SIDECAR, SIDECAR_BYTES = ".cls", 32
"""A member that holds the class of the image beside it, a whole number as text; and how many bytes of it are read."""


class TarStore(FileStore):
    """Members of one or several archives: image i starts at byte offsets[i] of archives[shard[i]]; shard, offsets: int64 [N].

    names: the members' names, relative to a folder that all share. shown: the archives' names in errors, since `archives` can be
    uncompressed copies in the cache.
    """

    kind = "tar"

    def __init__(
        self,
        root: str,
        archives: Sequence[str],
        shown: Sequence[str],
        names: list[str],
        shard: np.ndarray,
        offsets: np.ndarray,
        stamps: np.ndarray,
    ) -> None:
        super().__init__(root, names, stamps)
        self.archives, self.shown, self.shard, self.offsets = tuple(archives), tuple(shown), shard, offsets
        self._files = OpenFiles()

    def content(self, i: int) -> bytearray:
        return self._files.read(self.archives[self.shard[i]], self.size(i), int(self.offsets[i]))

    def where(self, i: int) -> str:
        return printable(f"{self.shown[self.shard[i]]}!{self.names[i]}")

    def repeats(self) -> bool:
        return len(self.shown) > 1

    def identity(self) -> str:
        several = [] if len(self.shown) == 1 else [[os.path.abspath(one) for one in self.shown], self.shard.tolist()]
        return entry_name(super().identity(), self.offsets.tolist(), *several)

    def layout(self, indices: Tensor) -> Tensor:
        """Offsets in the concatenated archives."""
        starts = np.cumsum([0, *(os.stat(archive).st_size for archive in self.archives)])
        chosen = indices.numpy()
        return torch.from_numpy(starts[self.shard[chosen]] + self.offsets[chosen])


class TarMember(NamedTuple):
    """An image in archive number `shard`: name, offset and size in bytes, and its class in WebDataset's sidecar file."""

    name: str
    shard: int
    offset: int
    size: int
    label: str | None


class TarContents(NamedTuple):
    """The contents of an archive. pictures: name to (offset, size) in bytes. labels: sample to the text of its sidecar."""

    pictures: dict[str, tuple[int, int]]
    labels: dict[str, str]


def open_tar(path: str, split: str | None, *, under: str = "", labels: str = "folders") -> Source:
    """tar:PATH (.tar, .tar.gz, .tar.bz2, .tar.xz), or tar:PATTERN for several archives that form one set.

    under: use only this folder inside. Otherwise like `folder:`, but labels beside the images (.cls, as WebDataset writes them) take
    precedence over class folders.
    """
    title, archives = f"tar:{path}", archives_of(path, f"tar:{path}")
    file_stamps = [file_stamp(archive) for archive in archives]
    unpacked = [unpack(archive, stamp, title) for archive, stamp in zip(archives, file_stamps, strict=True)]
    with ThreadPoolExecutor(INDEXING_THREADS) as threads:
        indices = list(threads.map(read_index, unpacked, archives, file_stamps, itertools.repeat(title)))
    inside = under.strip("/") + "/" if under.strip("/") else ""
    members = members_below(inside, indices)
    if labels == "folders" and (classes := sidecar_labels(members, title)) is not None:
        layout = arrange((member.name for member in members), "none", title, f"{printable(path)}!{inside}")
        layout = layout._replace(classes=classes)
    else:
        layout = arrange((member.name for member in members), labels, title, f"{printable(path)}!{inside}")
    shard = np.array([member.shard for member in members], dtype=np.int64)
    sizes = np.array([member.size for member in members], dtype=np.int64)
    stamps = np.column_stack([sizes, np.array(file_stamps, dtype=np.int64)[shard, 1:]])
    offsets = np.array([member.offset for member in members], dtype=np.int64)
    root = str(archives[0]) if len(archives) == 1 else path
    source = layout.source(
        TarStore(
            root, [str(one) for one in unpacked], [str(one) for one in archives], layout.names, shard, offsets, stamps
        )
    )
    return source if len(archives) == 1 or inside else dataclasses.replace(source, domain_names=(pattern_name(path),))


def members_below(inside: str, indices: Sequence[TarContents]) -> list[TarMember]:
    """The visible images of the folder `inside`, sorted by name, then by archive, which is the order of `arrange`."""
    members = [
        TarMember(name[len(inside) :], shard, *span, found.labels.get(sample_of(name)))
        for shard, found in enumerate(indices)
        for name, span in found.pictures.items()
        if name.startswith(inside) and is_visible(name[len(inside) :])
    ]
    return sorted(members, key=lambda member: (member.name, member.shard))


def sample_of(name: str) -> str:
    """WebDataset's key: members of one sample have the same name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def sidecar_labels(members: Sequence[TarMember], title: str) -> list[str] | None:
    """The class in each image's sidecar; None if there are no sidecars.

    Raises UserError if only some images have a sidecar, or if a class is not a whole number.
    """
    without = [member for member in members if member.label is None]
    if len(without) == len(members):
        return None
    if without:
        raise UserError(
            f"{title}: {len(without)} pictures have no {SIDECAR} beside them ({printable(without[0].name)}), the others do; "
            "add ?labels=none to use all without labels"
        )
    labels = [member.label or "" for member in members]
    for label, member in zip(labels, members, strict=True):
        if not re.fullmatch("-?[0-9]+", label):
            raise UserError(
                f"{title}: the {SIDECAR} beside {printable(member.name)} says {label!r}, which is not a whole number; "
                "correct it, or add ?labels=none"
            )
    return labels


def unpack(archive: Path, stamp: tuple[int, int, int], title: str) -> Path:
    """The archive itself if it is uncompressed, else its uncompressed copy in the cache."""
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


def read_index(unpacked: Path, archive: Path, stamp: tuple[int, int, int], title: str) -> TarContents:
    """The contents of an archive; from the cache if the archive is unchanged."""
    name = entry_name(os.path.abspath(archive), stamp, "labels")
    remembered = recall("indices", name)
    if remembered is not None:
        tables = [
            {os.fsdecode(key.encode("latin-1")): value for key, value in table.items()}
            for table in json.loads(remembered)
        ]
        return TarContents(*tables)
    members = scan_headers(unpacked, title)
    listed = [{os.fsencode(key).decode("latin-1"): value for key, value in table.items()} for table in members]
    remember("indices", name, json.dumps(listed).encode(), max(stamp[1:]))
    return members


def scan_headers(unpacked: Path, title: str) -> TarContents:
    """Read the headers of an archive. If several members have one name, the last one counts, as in unpacking."""
    total = unpacked.stat().st_size
    spans: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(unpacked, "r:") as archive:
            for member in archive:
                name = os.path.normpath(member.name).replace(os.sep, "/").lstrip("/")
                if member.islnk():  # another name of an earlier member
                    target = os.path.normpath(member.linkname).replace(os.sep, "/").lstrip("/")
                    if is_picture(name) and target in spans:
                        spans[name] = spans[target]
                elif member.isreg() and is_picture(name):
                    spans[name] = (member.offset_data, member.size)
                    if member.offset_data + member.size > total:
                        raise UserError(f"{title}: the archive is cut short in {printable(name)}; fetch it again")
                elif member.isreg() and name.endswith(SIDECAR) and (content := archive.extractfile(member)):
                    labels[sample_of(name)] = content.read(SIDECAR_BYTES).decode("utf-8", "replace").strip()
                # tarfile keeps every header in memory, which is too much for a million members
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
    except tarfile.TarError as error:
        raise UserError(
            f"{title}: not a readable archive ({error}); expected .tar, .tar.gz, .tar.bz2 or .tar.xz"
        ) from None
    return TarContents(spans, labels)
