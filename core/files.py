"""Files that exist whole or not at all: written under another name, synced to disk, then renamed; and their digests.

Only regular files are read and written: a device, a pipe or a folder in the place of a file is an error that names it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def expanded(path: str | Path) -> Path:
    """A path with ~ as the home folder. ~ of an unknown user stays as it is, and is then not found: pathlib would raise RuntimeError."""
    return Path(os.path.expanduser(path))


def path_beside(path: str | Path, ending: str) -> Path:
    """The path with this ending after its last name, which `.` and `..` have when they are resolved; ~ as `expanded`."""
    given = expanded(path)
    named = given if given.name not in ("", "..") else given.resolve()
    return Path(f"{named}{ending}")


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode("utf-8"), shared)


def write_bytes(path: Path, content: bytes, shared: bool = False) -> None:
    """Write a file and sync it; a half-written file never stands under the final name.

    shared: several processes may write this file at the same time, with no lock between them. A link is followed, and its target
    is written. Raises UserError if something other than a regular file has this name.
    """
    path = writable_place(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft" if shared else f".{path.name}.draft")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        if shared:  # each process has its own draft, which no later process would overwrite
            draft.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedWriter]:
    """Within it, a file to write piece by piece; it gets its name when all is written and synced. After an error nothing is left of it.

    The folder is made. Raises UserError as `writable_place`.
    """
    path = writable_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def writable_place(path: Path) -> Path:
    """Where a file of this name is written: the path, or the target of the link that it is. Raises UserError: not a regular file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    if not stat.S_ISREG(mode):
        raise UserError(
            f"{path} is {_kind(mode)}, and only a regular file is written; name another file, or move it away"
        )
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_output(path: Path, option: str, endings: Sequence[str] = (), make: bool = False) -> None:
    """Check, before any long work, that a file can be written there.

    option: as the message names it. endings: those allowed, if any. make: the folder may be missing, since it is made then.
    Raises UserError.
    """
    if endings and path.suffix.lower() not in endings:
        raise UserError(f"{option}: {path} ends in none of {', '.join(endings)}; name a file with such an ending")
    try:
        writable_place(path)
        folder = path.resolve().parent
        while make and not os.path.lexists(folder):
            folder = folder.parent
        if not folder.is_dir():
            raise UserError(f"{option}: there is no folder {folder}; make it, or name another file")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise UserError(f"{option}: {path} cannot be written ({_reason(error)}); name another file") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}: {folder} cannot be written; name a file in another folder")


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError, also for a device, a pipe or a folder, which are not read (a pipe would wait)."""
    with _open_regular(path) as file:
        return file.read()


def _open_regular(path: Path) -> BufferedReader:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"it is {_kind(mode)}, not a file", str(path))
    return open(handle, "rb")


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "no regular file")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, contiguous, and sync the file; tensors that share memory are each written in full.

    Who may read other new files may read this one. Raises UserError if something other than a regular file has this name.
    """
    from safetensors.torch import save_file  # here, because what reads and writes texts alone needs no torch

    path = writable_place(path)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, metadata)
    path.chmod(0o666 & ~_umask())  # safetensors lets only the owner read it
    sync(path)


def _umask() -> int:
    """What new files of this process do not allow. It can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sha256(path: Path) -> str:
    """The SHA-256 digest of a regular file, in hexadecimal. Raises OSError."""
    with _open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
