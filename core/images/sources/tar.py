"""`tar:`: images read directly from archives, by an index of offsets that is made once.

A compressed archive has no random access, so it is decompressed once (to a .tar, not to files) into the cache.
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...printable import printable
from ..cache import entry_name, file_stamp
from ..limits import RATIO, limits_of
from ..notes import merged
from ..open_files import OpenFiles
from ..places import abridged, titled
from ..store import Source
from ..sums import Sums
from .files import FileStore, checked_bits
from .layout import arrange
from .samples import classes_beside, endings_of, folders_without, members_below, notes_about, rule_of
from .shards import archives_of, pattern_name
from .tar_index import read_index
from .unpack import unpack

INDEXING_THREADS = 8


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
        bits: int | None = None,
    ) -> None:
        super().__init__(root, names, stamps, bits)
        self.archives, self.shown, self.shard, self.offsets = tuple(archives), tuple(shown), shard, offsets
        self._files, self._sums = OpenFiles(), dict[str, Sums]()

    def content(self, i: int) -> bytearray:
        archive, size, offset = self.archives[self.shard[i]], self.size(i), int(self.offsets[i])
        if archive == self.shown[self.shard[i]]:
            return self._files.read(archive, size, offset)
        if archive not in self._sums:  # a copy in the cache
            self._sums[archive] = Sums(Path(archive))
        return self._sums[archive].read(self._files, size, offset)

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
) -> Source:
    """tar:PATH (.tar, .tar.gz, .tar.bz2, .tar.xz), or tar:PATTERN for several archives that form one set.

    under: use only this folder inside. labels: as of `folder:`; if given as folders, an only folder that holds the pictures themselves is
    a class, and no wrapper. Otherwise like `folder:`, but labels beside the images (.cls, as WebDataset writes them) take
    precedence over class folders. key: first-dot or last-dot, where a member's name is cut; members with equal first parts are one
    sample. image: the endings of the pictures that are used, such as png or jpg,png; all by default. label: the ending of the files
    whose texts are the labels, or json:KEY. max_size, max_ratio: how large a compressed archive may become, in bytes and in times its
    size. group, bits: as of `folder:`.
    """
    title, archives = titled("tar", path), archives_of(path, titled("tar", path))
    titles = [title] if len(archives) == 1 else [titled("tar", str(archive)) for archive in archives]
    rule, limits = rule_of(label, key, image, title), limits_of(max_size, max_ratio, title)
    file_stamps = [file_stamp(archive) for archive in archives]
    unpacked = [unpack(*one, limits) for one in zip(archives, file_stamps, titles, strict=True)]
    with ThreadPoolExecutor(INDEXING_THREADS) as threads:
        reading = itertools.repeat(rule.reading())
        indices = list(threads.map(read_index, unpacked, archives, file_stamps, titles, reading))
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
    place = f"{abridged(path)}!{inside}"
    empty = folders_without(members, inside, indices)
    names = (one.name for one in members)
    rule_of_folders = (labels or "folders") if classes is None else "none"
    wrapped = labels != "folders" or any(one.name.count("/") > 1 for one in members)
    layout = arrange(names, rule_of_folders, title, place, archive=wrapped, empty=empty, beside=notes)
    groups = layout.groups(group, title)
    layout = layout if classes is None else layout._replace(classes=classes)
    shard = np.array([member.shard for member in members], dtype=np.int64)
    sizes = np.array([member.size for member in members], dtype=np.int64)
    stamps = np.column_stack([sizes, np.array(file_stamps, dtype=np.int64)[shard, 1:]])
    offsets = np.array([member.offset for member in members], dtype=np.int64)
    root = str(archives[0]) if len(archives) == 1 else path
    copies, shown = [str(one) for one in unpacked], [str(one) for one in archives]
    source = layout.source(
        TarStore(root, copies, shown, layout.names, shard, offsets, stamps, checked_bits(bits, title))
    )
    source = dataclasses.replace(source, notes=merged([source.notes]), groups=groups)
    return source if len(archives) == 1 or inside else dataclasses.replace(source, domain_names=(pattern_name(path),))
