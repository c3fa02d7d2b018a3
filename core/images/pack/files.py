"""The files of a pack."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...printable import printable
from ..notes import Note
from ..open_files import OpenFiles

ABOUT, INDEX, RECORDS = "pack.json", "index.safetensors", "records.bin"


def unusable(folder: Path, reason: str) -> UserError:
    return UserError(f"pack:{printable(str(folder))}: {reason}; {remedy(folder)}")


def remedy(folder: Path) -> str:
    return f"remove {printable(str(folder))} and run the command that packed it again"


class PackFiles:
    """The files of a pack in a folder."""

    mapped = True
    """Whether records of one shape are mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shown = folder, str(folder)
        self._files = OpenFiles()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackFiles, (self.folder,)

    def unusable(self, reason: str) -> UserError:
        return unusable(self.folder, reason)

    def remedy(self) -> str:
        return remedy(self.folder)

    def whole(self, name: str) -> bytes:
        """The bytes of a file. Raises UserError."""
        file_size(self.folder / name)
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise self.unusable(f"{name} cannot be read ({error.strerror})") from None

    def size(self) -> int:
        """Bytes of the records."""
        return file_size(self.folder / RECORDS)

    def read(self, size: int, offset: int) -> bytearray:
        """Bytes of the records. Raises OSError."""
        return self._files.read(str(self.folder / RECORDS), size, offset)

    def notes(self) -> list[Note]:
        return []


def file_size(file: Path) -> int:
    """The size of a regular file of a pack. Raises UserError if it is missing or something else."""
    try:
        status = file.stat()
    except OSError as error:
        raise unusable(file.parent, f"{file.name} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise unusable(file.parent, f"{file.name} is no file")
    return status.st_size
