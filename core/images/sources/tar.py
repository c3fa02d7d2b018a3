"""`tar:`: images read directly from archives, by an index of offsets that is made once.

A compressed archive has no random access, so it is decompressed once (to a .tar, not to files) into the cache. Archives in object storage
are read by byte ranges (`ObjectReader`): an index needs the blocks that hold headers, which are all where pictures are small.
"""

import dataclasses
import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...phase import note_progress
from ...printable import printable
from ..cache import entry_name
from ..limits import RATIO, UnpackLimits, limits_of
from ..notes import merged
from ..open_files import OpenFiles
from ..places import abridged, titled
from ..remote.address import absolute
from ..remote.blocks import Held
from ..remote.faults import ObjectError
from ..remote.reading import ObjectReader
from ..store import Source, sha256_key
from ..sums import Sums, sums_file
from .archives import Shelf, shelf_of
from .files import FileStore, checked_bits
from .layout import arrange
from .named_splits import about_archives
from .samples import TarMember, classes_beside, endings_of, folders_without, members_below, notes_about, rule_of
from .shards import pattern_name
from .tar_groups import group_rule, groups_of_members
from .tar_index import TarContents, read_index
from .tar_labels import Reading
from .unpack import unpack

INDEXING_THREADS = 8
GAP, RUN = 1 << 16, 1 << 22
"""Members of an object that are hashed are read together up to RUN bytes, with gaps (headers, sidecars) up to GAP."""


class TarStore(FileStore):
    """Members of one or several archives: image i starts at byte offsets[i] of archives[shard[i]]; shard, offsets: int64 [N].

    names: the members' names, relative to a folder that all share. shown: the archives' names in errors, since `archives` can be
    uncompressed copies in the cache. reader: reads those that are objects. held: keeps copies of objects in the cache.
    """

    kind = "tar"
    reader: ObjectReader | None = None
    held: Held | None = None

    def __init__(
        self,
        root: str,
        archives: Sequence[str],
        shown: Sequence[str],
        names: list[str],
        shard: np.ndarray,
        offsets: np.ndarray,
        stamps: np.ndarray,
        bits: int | None = None,
    ) -> None:
        super().__init__(root, names, stamps, bits)
        self.archives, self.shown, self.shard, self.offsets = tuple(archives), tuple(shown), shard, offsets
        self._files, self._sums = OpenFiles(), dict[str, Sums]()

    def content(self, i: int) -> bytes | bytearray:
        archive, size, offset = self.archives[self.shard[i]], self.size(i), int(self.offsets[i])
        if self.reader is not None and archive in self.reader.by_url:
            return self.reader.read(archive, size, offset)
        if archive == self.shown[self.shard[i]]:
            return self._files.read(archive, size, offset)
        try:
            if archive not in self._sums:  # a copy in the cache
                self._sums[archive] = Sums(Path(archive))
            return self._sums[archive].read(self._files, size, offset)
        except OSError as error:
            raise self.of_copy(error, archive) from None

    def of_copy(self, error: OSError, copy: str) -> OSError | ObjectError:
        """The error of a copy in the cache that was changed or cut; one of an object is deleted, since it can be made anew."""
        if self.held is None or error.errno not in (None, errno.EIO, errno.ENOENT):
            return error
        for file in (Path(copy), sums_file(Path(copy))):
            file.unlink(missing_ok=True)
        return ObjectError(
            f"{printable(copy)}: this copy of an object in the cache was damaged and is deleted now; run the same command again, which "
            "makes it anew and goes on"
        )

    def hashed(self) -> np.ndarray:
        """As of files; members of objects that lie side by side are fetched together."""
        if self.reader is None or not all(archive in self.reader.by_url for archive in self.archives):
            return super().hashed()
        reader, keys, done = self.reader, np.empty(len(self), dtype=np.int64), itertools.count(1)

        def hash_run(run: list[int]) -> None:
            begin, end = int(self.offsets[run[0]]), max(int(self.offsets[i]) + self.size(i) for i in run)
            content = memoryview(reader.read(self.archives[self.shard[run[0]]], end - begin, begin))
            for i in run:
                start = int(self.offsets[i]) - begin
                keys[i] = sha256_key(content[start : start + self.size(i)])
                note_progress(next(done), len(self))

        self._unreadable = {}
        with ThreadPoolExecutor(INDEXING_THREADS) as threads:
            for _ in threads.map(hash_run, self.runs()):
                pass
        return keys

    def runs(self) -> Iterator[list[int]]:
        """The numbers of all members, in groups that one request each should fetch."""
        run, end = list[int](), 0
        for i in self.layout(torch.arange(len(self))).argsort().tolist():
            start = int(self.offsets[i])
            near = bool(run) and self.shard[i] == self.shard[run[0]] and start - end <= GAP
            if run and not (near and start + self.size(i) - int(self.offsets[run[0]]) <= RUN):
                yield run
                run, end = [], 0
            run.append(i)
            end = max(end, start + self.size(i))
        if run:
            yield run

    def where(self, i: int) -> str:
        return printable(f"{self.shown[self.shard[i]]}!{self.names[i]}")

    def repeats(self) -> bool:
        return len(self.shown) > 1

    def identity(self) -> str:
        several = [] if len(self.shown) == 1 else [[absolute(one) for one in self.shown], self.shard.tolist()]
        return entry_name(super().identity(), self.offsets.tolist(), *several)

    def layout(self, indices: Tensor) -> Tensor:
        """Offsets in the concatenated archives."""
        objects = {} if self.reader is None else self.reader.by_url
        sizes = (objects[one].size if one in objects else os.stat(one).st_size for one in self.archives)
        starts, chosen = np.cumsum([0, *sizes]), indices.numpy()
        return torch.from_numpy(starts[self.shard[chosen]] + self.offsets[chosen])


def open_tar(
    path: str,
    split: str | None,
    *,
    under: str = "",
    labels: str | None = None,
    key: str = "first-dot",
    image: str | None = None,
    label: str | None = None,
    max_size: str = "200GB",
    max_ratio: int = RATIO,
    group: str | None = None,
    bits: int | None = None,
    cache: str | None = None,
) -> Source:
    """tar:PATH (.tar, .tar.gz, .tar.bz2, .tar.xz), or tar:PATTERN for several archives that form one set; also of objects (s3://...).

    under: use only this folder inside. labels: as of `folder:`; if given as folders, an only folder that holds the pictures themselves is
    a class, and no wrapper. Otherwise like `folder:`, but labels beside the images (.cls, as WebDataset writes them) take
    precedence over class folders. key: first-dot or last-dot, where a member's name is cut; members with equal first parts are one
    sample. image: the endings of the pictures that are used, such as png or jpg,png; all by default. label: the ending of the files
    whose texts are the labels, or json:KEY. max_size, max_ratio: how large a compressed archive may become, in bytes and in times its
    size. group: as of `folder:`, or json:KEY, a key of the .json beside each picture. bits: as of `folder:`. cache: how much the cache
    of objects may hold, such as 50GB; 20GB by default, 0 for nothing.
    """
    title = titled("tar", path)
    rule, limits = rule_of(label, key, image, title), limits_of(max_size, max_ratio, title)
    shelf = shelf_of(path, title, cache)
    by_json = group_rule(group, rule, title)
    reading = rule.reading()._replace(group=by_json and by_json.reading().field)
    unpacked, indices = indexed(shelf, reading, limits, title)
    inside = under.strip("/") + "/" if under.strip("/") else ""
    members, notes = members_below(inside, indices, rule)
    if not members and rule.image:
        everything, _ = members_below(inside, indices, rule._replace(image=()))
        found = ", ".join(endings_of(everything, rule)[:5])
        raise UserError(
            f"{title}: no picture has the ending image={abridged(image or '', 40)} (there are: {abridged(found)})"
        )
    classes = classes_beside(members, inside, indices, rule, title) if labels in (None, "folders") else None
    notes += notes_about(members, inside, indices, rule, classes is not None)
    uncut, about = about_archives(shelf.archives, path)
    notes += [*shelf.notes(), *about]
    place = f"{abridged(path)}!{inside}"
    empty = folders_without(members, inside, indices)
    names = (one.name for one in members)
    rule_of_folders = (labels or "folders") if classes is None else "none"
    wrapped = labels != "folders" or any(one.name.count("/") > 1 for one in members)
    layout = arrange(names, rule_of_folders, title, place, archive=wrapped, empty=empty, beside=notes)
    if by_json is None:
        groups = layout.groups(group, title)
    else:
        groups = groups_of_members(by_json, members, inside, indices, title)
    layout = layout if classes is None else layout._replace(classes=classes)
    store = store_of_members(shelf, unpacked, members, layout.names, path, checked_bits(bits, title))
    source = layout.source(store)
    source = dataclasses.replace(source, notes=merged([source.notes]), groups=groups, uncut=source.uncut or uncut)
    if len(shelf.archives) > 1 and not inside:
        source = dataclasses.replace(source, domain_names=(pattern_name(path),))
    return source


def indexed(
    shelf: Shelf, reading: Reading, limits: UnpackLimits, title: str
) -> tuple[list[Path | None], list[TarContents]]:
    """Of each archive: its uncompressed copy, None if it is uncompressed itself; and its contents. Raises UserError."""
    archives = shelf.archives
    titles = [title] if len(archives) == 1 else [titled("tar", archive.shown) for archive in archives]
    unpacked = [unpack(archive, own, limits) for archive, own in zip(archives, titles, strict=True)]
    for copy in filter(None, unpacked):
        shelf.hold(copy)
    with ThreadPoolExecutor(INDEXING_THREADS) as threads:
        return unpacked, list(threads.map(read_index, unpacked, archives, titles, itertools.repeat(reading)))


def store_of_members(
    shelf: Shelf,
    unpacked: Sequence[Path | None],
    members: Sequence[TarMember],
    names: list[str],
    path: str,
    bits: int | None,
) -> TarStore:
    """The images of an archive, or of several. names: of the members, relative. path: as the URI has it."""
    shard = np.array([member.shard for member in members], dtype=np.int64)
    sizes = np.array([member.size for member in members], dtype=np.int64)
    stamps = np.column_stack([sizes, np.array([one.stamp for one in shelf.archives], dtype=np.int64)[shard, 1:]])
    offsets = np.array([member.offset for member in members], dtype=np.int64)
    shown = [one.shown for one in shelf.archives]
    copies = [one.shown if copy is None else str(copy) for copy, one in zip(unpacked, shelf.archives, strict=True)]
    store = TarStore(shown[0] if len(shown) == 1 else path, copies, shown, names, shard, offsets, stamps, bits)
    store.reader, store.held = shelf.reader, shelf.held
    return store
