"""Lists a folder of pictures: what is read, and what is passed over and why."""

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from ...ownfiles import OLD_SHEET, RUN_FOLDERS, is_run
from ...printable import printable
from ..cache import cache_folder, stamp_of
from ..decode import is_picture
from ..notes import Note

PICTURE_ENDINGS = frozenset((
    ".heic", ".heif", ".hif", ".mpo", ".ico", ".icns", ".jxl", ".jpe", ".jp2k", ".j2k", ".jpx", ".apng", ".tga", ".psd", ".xcf",
    ".svg", ".eps", ".dds", ".pcx", ".dib", ".pbm", ".pnm", ".pfm", ".exr", ".hdr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw",
    ".orf", ".rw2", ".raf", ".dcm", ".dicom", ".nii", ".npy", ".npz", ".fits", ".mp4", ".mov", ".avi", ".mkv", ".webm",
))  # fmt: skip
"""Endings of pictures, videos and arrays that are not read: a training warns of them, and only counts other files."""

OTHER_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
ENDINGS_LISTED = 12
HIDDEN = "hidden files and folders"
OF_RUNS, SHEETS = "folders of runs, which are no data", "contact sheets of earlier versions"


class Listing(NamedTuple):
    """The pictures below a folder. names: sorted, relative. stamps: int64 [N, 3], their `file_stamp`. empty: folders without one."""

    names: list[str]
    stamps: np.ndarray
    empty: list[str]
    notes: list[Note]


def listing_of(root: str, takes: Callable[[str], bool] = is_picture) -> Listing:
    """All pictures below `root`, at any depth. Links are followed, but each folder is read once, so loops end.

    takes: whether a file of this name is a picture. Folders of runs, the cache, hidden files and what is no regular file are passed over.
    Raises UserError if a folder cannot be read, or if a picture is a link that leads nowhere.
    """
    walk = Walk(root, takes)
    walk.run()
    walk.found.sort()
    names = [name for name, _ in walk.found]
    stamps = np.array([stamp for _, stamp in walk.found], dtype=np.int64).reshape(-1, 3)
    holders = {name.rpartition("/")[0] for name in names} - {""}
    filled = {parent for folder in holders for parent in parents(f"{folder}/")}
    filled.update(parent for name in walk.passed for parent in (name, *parents(name)))
    return Listing(names, stamps, [name for name in walk.folders if name not in filled], walk.notes())


def parents(name: str) -> list[str]:
    """The first three folders on the way to a file: a, a/b, a/b/c."""
    parts = name.split("/", 3)[:-1] if name.count("/") > 2 else name.split("/")[:-1]
    return ["/".join(parts[: k + 1]) for k in range(len(parts))]


class Walk:
    """One walk through a folder. found: pictures and stamps. folders: the read ones, at most three deep. passed: those that were not."""

    def __init__(self, root: str, takes: Callable[[str], bool] = is_picture) -> None:
        self.root, self.takes = root, takes
        self.found: list[tuple[str, tuple[int, int, int]]] = []
        self.folders: list[str] = []
        self.passed: list[str] = []
        self._counts: dict[str, list[int | str]] = {}
        self._endings: dict[str, list[int | str]] = {}
        self._seen: set[tuple[int, int]] = set()
        self._above = {place for folder in ancestors(root) if (place := place_of(folder)) is not None}
        self._cache = place_of(str(cache_folder("x").parent))

    def run(self) -> None:
        # A stack instead of recursion: folders can be nested deeper than Python's calls.
        waiting = [""]
        while waiting:
            inner = waiting.pop()
            # sorted, so that if two links lead to one folder, always the same one is followed
            waiting += [f"{inner}{name}/" for name in sorted(self._enter(inner), reverse=True)]

    def _enter(self, inner: str) -> list[str]:
        """Read one folder, `a/b/` below the root; returns the names of the folders in it that are to be read too."""
        shown = inner.rstrip("/")
        folder = os.path.join(self.root, shown) if shown else self.root
        try:
            status = os.stat(folder)
            place = status.st_dev, status.st_ino
            if inner and (reason := self._reason_to_pass(place)):
                return self._pass(shown, reason)
            if inner and leads_into_run(folder):
                return self._pass(shown, OF_RUNS)
            self._seen.add(place)
            with os.scandir(folder) as entries:
                listed = {entry.name: entry for entry in entries}
        except OSError as error:
            raise UserError(
                f"{printable(folder)}: cannot be listed ({error.strerror}); check its permissions, or remove it"
            ) from None
        own_run = is_run(listed)
        if own_run and inner:
            refuse_pictures_beside(folder, listed)
            return self._pass(shown, OF_RUNS)
        if inner and inner.count("/") <= 3:
            self.folders.append(shown)
        below = [name for name, entry in listed.items() if self._is_folder(inner, name, entry)]
        if own_run:  # a run in the folder of the data itself
            for name in (name for name in below if name in RUN_FOLDERS):
                self._pass(inner + name, OF_RUNS)
            below = [name for name in below if name not in RUN_FOLDERS]
        return below

    def _reason_to_pass(self, place: tuple[int, int]) -> str:
        if place in self._above:
            return "links to a folder above, which are not followed"
        if place == self._cache:
            return "folders of Rootstock's cache"
        return "links to folders that are read already" if place in self._seen else ""

    def _pass(self, name: str, reason: str) -> list[str]:
        self.passed.append(name)
        count(self._counts, reason, name)
        return []

    def _is_folder(self, inner: str, name: str, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a folder to be read; files are noted here."""
        try:
            folder = entry.is_dir()
        except OSError:  # a link that leads to itself
            folder = False
        if name.startswith(".") or (folder and name.startswith("__MACOSX")):
            count(self._counts, HIDDEN, inner + name)
        elif folder:
            return True
        elif name == OLD_SHEET:
            count(self._counts, SHEETS, inner + name)
        elif self.takes(name):
            self._take(inner + name, entry)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            count(self._counts, "links that lead nowhere", inner + name)
        else:
            count(self._endings, os.path.splitext(name)[1].lower(), inner + name)
        return False

    def _take(self, name: str, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat()
        except OSError as error:
            raise UserError(unusable_file(entry.path, error)) from None
        if stat.S_ISREG(status.st_mode):
            self.found.append((name, stamp_of(status)))
        else:
            kind = OTHER_KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            count(self._counts, f"things with the name of a picture that are no files, but {kind}", name)

    def notes(self) -> list[Note]:
        """What was passed over, the most important first."""
        endings = sorted(self._endings.items(), key=lambda item: (item[0] not in PICTURE_ENDINGS, -int(item[1][0])))
        notes = [note_of_ending(ending, *tally) for ending, tally in endings[:ENDINGS_LISTED]]
        if rest := endings[ENDINGS_LISTED:]:
            total = sum(int(tally[0]) for _, tally in rest)
            notes.append(Note(total, "files with other endings, which are not read", str(rest[0][1][1]), "list"))
        for reason, (number, example) in self._counts.items():
            loud = reason.startswith(("things", "links that lead nowhere"))
            notes.append(Note(int(number), reason, str(example), "warn" if loud else "list"))
        return notes


def note_of_ending(ending: str, number: int | str, example: int | str) -> Note:
    what = (
        f"files ending in {printable(ending)}, which are not read"
        if ending
        else "files without an ending, which are not read"
    )
    return Note(int(number), what, str(example), "warn" if ending in PICTURE_ENDINGS else "list")


def count(tallies: dict[str, list[int | str]], kind: str, name: str) -> None:
    """Add one to a kind. tallies: by kind its number, and the name that comes first."""
    tally = tallies.setdefault(kind, [0, name])
    tally[0] = int(tally[0]) + 1
    tally[1] = min(str(tally[1]), name)


def place_of(folder: str) -> tuple[int, int] | None:
    """What tells a folder from all others: its device and inode; None if it is not there."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def ancestors(folder: str) -> Iterable[str]:
    """The folders above a folder, by its path and by where its links lead."""
    for start in {os.path.abspath(folder), os.path.realpath(folder)}:
        while (above := os.path.dirname(start)) != start:
            yield above
            start = above


def leads_into_run(folder: str) -> bool:
    """Whether a folder is a link to one of those inside a run."""
    if not os.path.islink(folder):
        return False
    above, name = os.path.split(os.path.realpath(folder))
    return name in RUN_FOLDERS and is_run(os.listdir(above))


def refuse_pictures_beside(folder: str, names: Collection[str]) -> None:
    """Raises UserError if pictures lie directly in the folder of a run: a run puts its own one level deeper."""
    if pictures := sorted(name for name in names if is_picture(name)):
        raise UserError(
            f"{printable(folder)} is the folder of a run, but {len(pictures)} pictures lie beside its files "
            f"({printable(pictures[0])}); move the run or the pictures to another folder"
        )


def unusable_file(path: str, error: OSError) -> str:
    """Why a file that is named cannot be used, in one sentence."""
    shown = printable(path)
    if error.errno == errno.ELOOP:
        return f"{shown} cannot be opened: it is a link that leads back to itself; remove it"
    if os.path.islink(path) and not os.path.exists(path):
        target = printable(os.readlink(path))
        return f"{shown} cannot be opened: it is a dangling link ({target} does not exist); restore that, or remove the link"
    return f"{shown} cannot be opened ({error.strerror}); restore it, or remove it from the set"


def unusable_kind(path: str, mode: int) -> str:
    """Why something that is no regular file cannot be used, in one sentence."""
    kind = OTHER_KINDS.get(stat.S_IFMT(mode), "something else")
    return f"{printable(path)} is {kind}, not a file; remove it from the set"
