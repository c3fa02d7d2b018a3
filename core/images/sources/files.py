"""Images in files: `folder:`, and the store that folders, lists and archives share.

Names are kept in one block of bytes instead of a list of strings: updating the reference counts of a million strings would copy
their memory, page by page, into every forked worker.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ..cache import entry_name, file_stamp, recall, remember
from ..decode import EXTENSIONS, decode, decode_scaled, is_picture
from ..store import DamagedImage, Scale, Source, Uniform, number_classes, sha256_key

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing", "unlabelled", "unlabeled")
HASHING_THREADS, HASHING_CHUNK = 8, 256


class Names:
    """An immutable sequence of file names."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.block = b"".join(encoded)
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    @classmethod
    def of_block(cls, block: bytes, ends: np.ndarray) -> "Names":
        """Names from one block of bytes. ends: int64 [N + 1]; name i is block[ends[i] : ends[i + 1]]."""
        names = cls(())
        names.block, names.ends = block, ends
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.block[self.ends[i] : self.ends[i + 1]])


def printable(path: str) -> str:
    """A path that any terminal can print: bytes that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class FileStore:
    """Image files under `root`, by relative names with '/'. stamps: int64 [N, 3], the `file_stamp` of each file."""

    kind = "folder"

    def __init__(self, root: str, names: Sequence[str], stamps: np.ndarray) -> None:
        self.root, self.names, self.stamps = root, Names(names), stamps
        self._keys: Tensor | None = None
        self._unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.names)

    def content(self, i: int) -> bytes | bytearray:
        """The file's bytes. Raises OSError."""
        with open(os.path.join(self.root, self.names[i]), "rb") as file:
            return file.read()

    def where(self, i: int) -> str:
        """The file's name in errors."""
        return printable(os.path.join(self.root, self.names[i]))

    def name(self, i: int) -> str:
        return self.names[i]

    def full_name(self, i: int) -> str:
        return self.where(i)

    def repeats(self) -> bool:
        return False

    def read(self, i: int) -> Tensor:
        return decode(self.encoded(i), self.where(i))

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        return decode_scaled(self.encoded(i), self.where(i), scale)

    def encoded(self, i: int) -> bytes | bytearray:
        # A file that could not be read for its identity has a substitute identity, which may be on the wrong side of a split: so
        # it counts as damaged as long as this store exists.
        if i in self._unreadable:
            raise DamagedImage(self._unreadable[i])
        try:
            return self.content(i)
        except OSError as error:
            raise DamagedImage(f"{self.where(i)}: cannot be read ({error.strerror or error})") from None

    def stamp(self, i: int) -> str:
        return f"{self.names[i]}\t{self.size(i)}"

    def size(self, i: int) -> int:
        """Bytes of the file."""
        return int(self.stamps[i, 0])

    def identity(self) -> str:
        """The name of the cached hashes, which depend on every path, size and time of change."""
        listed = [self.names[i] for i in range(len(self))]
        return entry_name(self.kind, os.path.abspath(self.root), listed, self.stamps.tolist())

    def keys(self) -> Tensor:
        if self._keys is None:
            name, count = self.identity(), len(self)
            remembered = recall("keys", name)
            if remembered is None or len(remembered) != 8 * count:
                remembered = self.hashed().astype("<i8").tobytes()
                if not self._unreadable:  # otherwise the next run would not try to read them again
                    remember("keys", name, remembered, int(self.stamps[:, 1:].max(initial=0)))
            self._keys = torch.from_numpy(np.frombuffer(remembered, dtype="<i8").astype(np.int64))
        return self._keys

    def unreadable(self) -> Collection[int]:
        self.keys()
        return self._unreadable

    def hashed(self) -> np.ndarray:
        """int64 [N]: the keys, hashed from the files; from name and size if a file cannot be read."""
        unreadable: dict[int, str] = {}

        def key(i: int) -> int:
            try:
                return sha256_key(self.encoded(i))
            except DamagedImage as error:
                unreadable[i] = str(error)
                return sha256_key(b"unreadable\0" + self.stamp(i).encode("utf-8", "surrogateescape"))

        def chunk(start: int) -> list[int]:
            return [key(i) for i in range(start, min(start + HASHING_CHUNK, len(self)))]

        # hashlib and read release the GIL, so threads run in parallel
        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            chunks = list(threads.map(chunk, range(0, len(self), HASHING_CHUNK)))
        self._unreadable = unreadable
        return np.array([key for keys in chunks for key in keys], dtype=np.int64)

    def uniform(self) -> Uniform | None:
        return None

    def rows(self, indices: Tensor) -> Tensor | None:
        return None

    def layout(self, indices: Tensor) -> Tensor:
        return indices


def open_folder(path: str, split: str | None, *, under: str = "", labels: str = "folders") -> Source:
    """folder:PATH. under: use only this folder inside PATH. labels: folders, or none to ignore class folders."""
    title, root = f"folder:{path}", Path(path).expanduser() / under
    if not root.exists():
        raise UserError(f"{title}: there is no folder {printable(str(root))}; check the path")
    if not root.is_dir():
        kind = "tar" if ".tar" in root.name or root.suffix == ".tgz" else "list"
        raise UserError(f"{title}: this is a file, not a folder; an archive or a list opens as {kind}:{path}")
    layout = arrange(pictures_below(str(root)), labels, title, printable(str(root)))
    top = os.path.join(root, layout.prefix)
    return layout.source(FileStore(top, layout.names, stamps_of(top, layout.names, title)))


def stamps_of(root: str, names: Iterable[str], title: str) -> np.ndarray:
    """int64 [N, 3]: size and times of every file. Raises UserError, naming the first file that is missing."""
    stamps = []
    for name in names:
        try:
            stamps.append(file_stamp(os.path.join(root, name)))
        except OSError as error:
            file = printable(os.path.join(root, name))
            raise UserError(
                f"{title}: {file} cannot be opened ({error.strerror}); restore it, or remove it from the set"
            ) from None
    return np.array(stamps, dtype=np.int64).reshape(-1, 3)


def pictures_below(root: str) -> Iterable[str]:
    """Relative paths of all image files at any depth. Links are followed, but each folder is visited once, so loops end."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"{printable(str(error.filename))}: cannot be listed ({error.strerror}); check its permissions")

    seen = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # sorted, so that if two links lead to one folder, always the same one is followed
        below[:] = sorted(name for name in below if is_visible(name))
        inner = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from (file if inner == "." else f"{inner}/{file}" for file in files if is_picture(file))


def is_visible(path: str) -> bool:
    """Whether no part of a relative path is hidden or macOS metadata."""
    return not any(part.startswith((".", "__MACOSX")) for part in path.split("/") if part != ".")


class Layout(NamedTuple):
    """The meaning of a set's folders. names: sorted, relative to prefix. classes: the class of each image; None if unlabelled."""

    prefix: str
    names: list[str]
    splits: dict[str, list[int]]
    classes: list[str] | None

    def source(self, store: FileStore) -> Source:
        labels, classes = number_classes(self.classes) if self.classes is not None else (None, None)
        splits = {name: torch.tensor(indices, dtype=torch.int64) for name, indices in self.splits.items()}
        return Source(store, labels, classes, splits)


def arrange(paths: Iterable[str], labels: str, title: str, place: str) -> Layout:
    """Infer splits and classes from relative image paths, in the same way for folders and archives.

    A folder that contains nothing but one folder is skipped. If all top-level folders have names of splits, they are the splits.
    Below them the first folder is the class, at any depth; images without folders are unlabelled. Raises UserError if there are
    no images, or if some are outside the class folders.
    """
    if labels not in ("folders", "none"):
        raise UserError(f"{title}: labels={labels} is unknown (known: folders, none)")
    names = sorted(paths)
    if not names:
        raise UserError(f"{title}: no pictures under {place}; expected files ending in {', '.join(EXTENSIONS)}")
    prefix = ""
    while len(tops := {name.partition("/")[0] for name in names}) == 1 and "/" in names[0]:
        if (top := tops.pop()).lower() in SPLIT_NAMES:
            break
        prefix, names = f"{prefix}{top}/", [name[len(top) + 1 :] for name in names]
    tops = {name.partition("/")[0] for name in names}
    splits: dict[str, list[int]] = {}
    below = names
    if all("/" in name for name in names) and all(top.lower() in SPLIT_NAMES for top in tops):
        splits = {top: [] for top in sorted(tops, key=lambda top: SPLIT_NAMES.index(top.lower()))}
        for i, name in enumerate(names):
            splits[name.partition("/")[0]].append(i)
        below = [name.partition("/")[2] for name in names]
    loose = [i for i, name in enumerate(below) if "/" not in name]
    if labels == "none" or len(loose) == len(below):
        return Layout(prefix, names, splits, None)
    if loose:
        raise UserError(
            f"{title}: {len(loose)} pictures lie in no class folder ({printable(names[loose[0]])}), the others do; "
            "move them, or add ?labels=none to use all without labels"
        )
    return Layout(prefix, names, splits, [name.partition("/")[0] for name in below])
