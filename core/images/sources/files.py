"""Images in files: `folder:`, and the store that folders, lists and archives share.

Names are kept in one block of bytes instead of a list of strings: updating the reference counts of a million strings would copy
their memory, page by page, into every forked worker.
"""

import dataclasses
import hashlib
import itertools
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...phase import note_progress
from ...printable import printable
from ...threads import in_threads
from ..cache import entry_name, recall, remember, stamp_of
from ..decode import decode, decode_scaled, is_picture
from ..open_files import read_whole
from ..pixels import full_range
from ..places import uri_path
from ..remote.address import absolute
from ..store import DamagedImage, Scale, Source, Stamp, Uniform, sha256_key
from .layout import arrange
from .walk import listing_of, unusable_file, unusable_kind

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

    def __iter__(self) -> Iterator[str]:
        ends = self.ends.tolist()  # numpy's numbers cut slowly
        return (os.fsdecode(self.block[begin:end]) for begin, end in itertools.pairwise(ends))


class FileStore:
    """Image files under `root`, by relative names with '/'. stamps: int64 [N, 3], the `file_stamp` of each file.

    bits: the used bits of 16-bit files, None for all. unstamped: how many letters of each name its stamps leave out.
    """

    kind = "folder"

    def __init__(self, root: str, names: Sequence[str], stamps: np.ndarray, bits: int | None = None) -> None:
        self.root, self.names, self.stamps, self.bits, self.unstamped = root, Names(names), stamps, bits, 0
        self._keys: Tensor | None = None
        self._identity: str | None = None
        self._unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.names)

    def content(self, i: int) -> bytes | bytearray:
        """The file's bytes. Raises OSError."""
        return read_whole(os.path.join(self.root, self.names[i]))

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
        return self.decoded(i, self.file(i))

    def decoded(self, i: int, content: bytes | bytearray) -> Tensor:
        """The image in the bytes of file i. Raises DamagedImage."""
        where = self.where(i)
        picture = decode(content, where)
        return picture if self.bits is None else full_range(picture, self.bits, where)

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        picture, size = decode_scaled(self.file(i), self.where(i), scale)
        return (picture if self.bits is None else full_range(picture, self.bits, self.where(i))), size

    def encoded(self, i: int) -> bytes | bytearray | None:
        # with `bits`, the pixels are not those of the file
        return self.file(i) if self.bits is None else None

    def file(self, i: int) -> bytes | bytearray:
        """The bytes of file i. Raises DamagedImage."""
        # A file that could not be read for its identity has a substitute identity, which may be on the wrong side of a split: so
        # it counts as damaged as long as this store exists.
        if i in self._unreadable:
            raise DamagedImage(self._unreadable[i])
        try:
            return self.content(i)
        except OSError as error:
            raise DamagedImage(f"{self.where(i)}: cannot be read ({error.strerror or error})") from None

    def stamp(self, i: int) -> str:
        used = "" if self.bits is None else f"\tbits={self.bits}"
        return f"{self.names[i][self.unstamped :]}\t{self.size(i)}{used}"

    def watched(self, watch: Stamp) -> Sequence[str]:
        # By content, all files are read: the cached keys trust the times that the file system gives.
        seen = self.stamps[:, 1] if watch == "mtime" else self.hashed()
        return [f"\t{value}" for value in seen.tolist()]

    def size(self, i: int) -> int:
        """Bytes of the file."""
        return int(self.stamps[i, 0])

    def holds(self, file: Path) -> bool:
        """Whether this is one of the files. file: without links."""
        if os.fsencode(file.name) not in self.names.block:
            return False
        root = os.path.realpath(self.root)
        return any(os.path.normpath(os.path.join(root, self.names[i])) == str(file) for i in range(len(self)))

    def identity(self) -> str:
        """The name of the cached hashes, which depend on every path, size and time of change."""
        if self._identity is None:
            state = hashlib.sha256(self.names.block)
            state.update(self.names.ends.tobytes())
            state.update(self.stamps.tobytes())
            self._identity = entry_name(self.kind, absolute(self.root), state.hexdigest())
        return self._identity

    def newest(self) -> int:
        """The latest time of change of a file, in ns."""
        return int(self.stamps[:, 1:].max(initial=0))

    def keys(self) -> Tensor:
        if self._keys is None:
            name, count = self.identity(), len(self)
            remembered = recall("keys", name)
            if remembered is None or len(remembered) != 8 * count:
                self.adopt_keys(self.hashed(), self._unreadable, name)
            else:
                self._keys = torch.from_numpy(np.frombuffer(remembered, dtype="<i8").astype(np.int64))
        assert self._keys is not None
        return self._keys

    def knows_keys(self) -> bool:
        return self._keys is not None

    def adopt_keys(self, hashed: np.ndarray, unreadable: dict[int, str], name: str) -> None:
        """Take the keys that were hashed, int64 [N], and cache them. unreadable: the error of each file that has a substitute instead.

        name: `identity`.
        """
        self._keys, self._unreadable = torch.from_numpy(hashed), unreadable
        if not unreadable:  # otherwise the next run would not try to read them again
            remember("keys", name, hashed.astype("<i8").tobytes(), self.newest())

    def unreadable(self) -> Collection[int]:
        self.keys()
        return self._unreadable

    def substitute_key(self, i: int) -> int:
        """The key of a file that cannot be read, from its size alone: a name can hold a label, as a class's folder does."""
        return sha256_key(f"unreadable\0{self.size(i)}".encode())

    def hashed(self) -> np.ndarray:
        """int64 [N]: the keys, hashed from the files; from the size if a file cannot be read."""
        unreadable: dict[int, str] = {}

        def key(i: int) -> int:
            try:
                return sha256_key(self.file(i))
            except DamagedImage as error:
                unreadable[i] = str(error)
                return self.substitute_key(i)

        def chunk(start: int) -> list[int]:
            found = [key(i) for i in range(start, min(start + HASHING_CHUNK, len(self)))]
            note_progress(start + len(found), len(self))
            return found

        # hashlib and read release the GIL, so threads run in parallel
        with in_threads(HASHING_THREADS if len(self) > HASHING_CHUNK else 1) as side_by_side:
            chunks = list(side_by_side(chunk, range(0, len(self), HASHING_CHUNK)))
        self._unreadable = unreadable
        return np.array([key for keys in chunks for key in keys], dtype=np.int64)

    def uniform(self) -> Uniform | None:
        return None

    def rows(self, indices: Tensor) -> Tensor | None:
        return None

    def layout(self, indices: Tensor) -> Tensor:
        return indices


def open_folder(
    path: str,
    split: str | None,
    *,
    under: str = "",
    labels: str = "folders",
    group: str | None = None,
    bits: int | None = None,
) -> Source:
    """folder:PATH. The folders right below PATH are the classes; those named train, test and the like are splits.

    under: use only this folder inside PATH. labels: folders, or none to ignore class folders. group: folder, so that no split tears the
    pictures of a folder inside a class: a patient, a video. bits: how many bits of 16-bit files are
    used, 8 to 16, for example 12: the greatest value of so many bits becomes the brightest.
    """
    title = f"folder:{path}"
    root = Path(path).expanduser() / checked_under(under, title)
    check_folder(root, path, title)
    listing = listing_of(str(root))
    layout = arrange(
        listing.names, labels, title, printable(str(root)), archive=False, empty=listing.empty, beside=listing.notes
    )
    store = FileStore(os.path.join(root, layout.prefix), layout.names, listing.stamps, checked_bits(bits, title))
    return dataclasses.replace(layout.source(store), folder=str(root), groups=layout.groups(group, title))


def check_folder(root: Path, path: str, title: str) -> None:
    """Raises UserError unless there is a folder."""
    if root.is_dir():
        return
    if root.is_symlink() and not root.exists():
        target = printable(os.readlink(root))
        raise UserError(f"{title}: {printable(str(root))} is a dangling link ({target} does not exist); check the path")
    if not root.exists():
        raise UserError(f"{title}: there is no folder {printable(str(root))}; check the path")
    raise UserError(f"{title}: this is a file, not a folder; {advice_for(root)}")


def advice_for(file: Path) -> str:
    """How to open a file that was given as a folder, or a path that was given as a URI."""
    if not file.is_file():
        return f"open it as folder:{printable(uri_path(file))}"
    if is_picture(file.name):
        return "open the folder that holds it"
    if file.suffix.lower() in (".zip", ".7z", ".rar"):
        return "unpack it, and open the folder that comes out"
    known = {".npz": "npz", ".csv": "csv", ".tsv": "csv", ".tgz": "tar", ".parquet": "parquet"}
    kind = "tar" if ".tar" in file.name.lower() else known.get(file.suffix.lower(), "list")
    return f"open it as {kind}:{printable(uri_path(file))}"


def checked_under(under: str, title: str) -> str:
    """Raises UserError for an `under` that leaves PATH."""
    if os.path.isabs(under) or os.pardir in Path(under).parts:
        raise UserError(
            f"{title}: under={printable(under)} leaves PATH; expected a folder inside it, such as under=images"
        )
    return under


def checked_bits(bits: int | None, title: str) -> int | None:
    """Raises UserError for a number of bits that 16-bit files cannot use."""
    if bits is not None and not 8 <= bits <= 16:
        raise UserError(f"{title}: bits={bits} is not possible; expected 8 to 16, the used bits of 16-bit files")
    return bits


def stamps_of(root: str, names: Iterable[str], title: str) -> np.ndarray:
    """int64 [N, 3]: size and times of every file. Raises UserError, naming the first that is missing or no regular file."""
    stamps = []
    for name in names:
        file = os.path.join(root, name)
        try:
            status = os.stat(file)
        except OSError as error:
            raise UserError(f"{title}: {unusable_file(file, error)}") from None
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{title}: {unusable_kind(file, status.st_mode)}")
        stamps.append(stamp_of(status))
    return np.array(stamps, dtype=np.int64).reshape(-1, 3)
