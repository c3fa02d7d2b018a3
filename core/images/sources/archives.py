"""Archives: files here, or objects elsewhere. What a set of archives needs of either, and which ones a URI names."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import BinaryIO, Protocol

from ...errors import UserError
from ..cache import cache_folder, file_stamp, made_once
from ..notes import Note
from ..remote.address import is_remote
from ..remote.blocks import DEFAULT_MOST, Held, most_of
from ..remote.reading import ObjectReader, RemoteArchive, objects_below, objects_named
from .shards import archives_of, braces


class Archive(Protocol):
    """name: the same from any folder, part of the names of what is cached. shown: its name in errors. stamp: as `file_stamp`."""

    name: str
    shown: str
    stamp: tuple[int, int, int]
    size: int
    path: PurePath

    def open(self) -> BinaryIO: ...

    def place_of_copy(self, name: str, ending: str) -> Path:
        """Where the cache keeps a copy. name: what it depends on beside the archive."""
        ...

    def check_copy(self, size: int, title: str) -> None:
        """Raises UserError if the cache may not keep a copy of so many bytes."""
        ...


class CopyRoom:
    """Asks the cache for the room of a copy while it grows: anew whenever it has become larger by a quarter."""

    def __init__(self, archive: Archive, title: str) -> None:
        self.archive, self.title, self.asked = archive, title, 0

    def take(self, size: int) -> None:
        """Raises UserError if the cache may not keep a copy of so many bytes."""
        if size > self.asked:
            self.asked = size + (size >> 2)
            self.archive.check_copy(size, self.title)


def made_copy(place: Path, make: Callable[[BinaryIO], None], title: str, done: str, otherwise: str = "") -> Path:
    """A file in the cache, made once. done: what is done to it, in a message, and `otherwise` what else to do. Raises UserError."""
    try:
        return made_once(place, make)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"{title}: cannot be {done} to {place.parent} ({error.strerror}); set XDG_CACHE_HOME to a folder that can be written{otherwise}"
        ) from None


class LocalArchive:
    """A file. stamp: its `file_stamp`, if that is known."""

    def __init__(self, path: Path, stamp: tuple[int, int, int] | None = None) -> None:
        self.path: PurePath = path
        self._file = path
        self.shown, self.name = str(path), os.path.abspath(path)
        self.stamp = stamp or file_stamp(path)
        self.size = self.stamp[0]

    def open(self) -> BinaryIO:
        return open(self._file, "rb")

    def place_of_copy(self, name: str, ending: str) -> Path:
        return cache_folder("archives") / f"{name}{ending}"

    def check_copy(self, size: int, title: str) -> None:
        pass


class Shelf:
    """The archives of a set. reader: reads those that are objects; None for files. held: copies of objects in the cache."""

    def __init__(self, archives: Sequence[Archive], reader: ObjectReader | None = None) -> None:
        self.archives, self.reader, self.held = tuple(archives), reader, None if reader is None else Held()

    def notes(self) -> list[Note]:
        return [] if self.reader is None else self.reader.notes()

    def hold(self, copy: Path) -> None:
        """A copy that is not deleted while the set is open."""
        if self.held is not None:
            self.held.add(copy)


def shelf_of(path: str, title: str, cache: str | None, ending: str | None = None) -> Shelf:
    """The archives that a path, an address or a pattern names. cache: the option ?cache= of a set of objects.

    ending: of the objects below an address, where one may name a folder. Raises UserError.
    """
    if not is_remote(path):
        refuse_cache(cache, title)
        return Shelf([LocalArchive(one) for one in archives_of(path, title)])
    most = most_of(cache or DEFAULT_MOST, title)
    if ending is not None and not path.endswith(ending):
        objects = objects_below(path, ending, title)
    else:
        objects = objects_named(braces(path, title), title)
    reader = ObjectReader(objects, most)
    return Shelf([RemoteArchive(one, reader) for one in objects], reader)


def refuse_cache(cache: str | None, title: str) -> None:
    """Raises UserError for ?cache= of a file."""
    if cache is not None:
        raise UserError(f"{title}: cache= is for objects, such as s3://bucket/key, and this is a file; remove it")
