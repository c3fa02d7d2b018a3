"""The cache of features: one file for each tap of each set, network and view, mapped when it is used, and bounded in size.

    NAME.safetensors   the features, float16 or float32 [N, ...], row i for picture i
    NAME.json          what they are of, in plain words (`key`), their shape and dtype, and the sha256 of the other file

NAME is a hash of the key. Whatever fails costs time, never a number: the features are then computed again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..images.cache import cache_folder
from ..images.limits import sized
from ..manifest import DamagedFile, read_record, write_record
from .tensor_file import CODES, TensorFile, mapped, open_for_lock, opened_tensor, tensor_file_size, unused

KIND = "features"  # the cache's folder of this name
DATA, MANIFEST, PART = ".safetensors", ".json", ".part"
LOCK = ".lock"
OF_THE_PROCESS = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM}
"""Errors that say nothing against a file: another process can use it."""
DTYPES = {code: dtype for dtype, code in CODES.items()}


class Entry(NamedTuple):
    """The place of an entry. key: all that the features depend on, as JSON reads it back."""

    key: Mapping[str, Any]

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:40]

    @property
    def manifest(self) -> Path:
        return cache_folder(KIND) / f"{self.name}{MANIFEST}"

    @property
    def data(self) -> Path:
        return cache_folder(KIND) / f"{self.name}{DATA}"


def entry_of(key: Mapping[str, Any]) -> Entry:
    """The entry of a key, which holds what JSON can."""
    return Entry(json.loads(json.dumps(key)))


def look_up(entry: Entry, check: bool = True) -> Tensor | None:
    """The features of an entry, mapped; None if there are none. check: compare the file with its digest, which reads all of it.

    Raises DamagedFile, naming the file, if the entry is not what was written, and InTheWay if this process cannot use it.
    """
    with _locked(fcntl.LOCK_SH, entry.manifest.parent):
        try:
            record = read_record(entry.manifest)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            cause = getattr(error.__cause__, "__context__", None)
            raise (_unusable(entry.manifest, cause) if isinstance(cause, OSError) else error) from None
        try:
            shape, dtype, digest = tuple(record["shape"]), DTYPES[record["dtype"]], record["sha256"]
            if not all(isinstance(side, int) and side > 0 for side in shape) or record["key"] != entry.key:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise DamagedFile(f"{entry.manifest} is damaged (it does not describe these features)") from None
        try:
            handle = opened_tensor(entry.data)
        except FileNotFoundError:
            raise DamagedFile(f"{entry.data} is missing") from None
        except OSError as error:
            raise _unusable(entry.data, error) from error
    try:
        found = mapped(handle, shape, dtype, digest if check else None)
    except OSError as error:
        raise _unusable(entry.data, error) from error
    with contextlib.suppress(OSError):
        os.utime(entry.manifest)  # the entry that was not used for longest goes first
    return found


class InTheWay(Exception):
    """Something else than the entry keeps a process from using it; the message names the file and says what."""


def _unusable(path: Path, error: OSError) -> Exception:
    if error.errno in OF_THE_PROCESS:
        return InTheWay(f"{path} cannot be used ({error.strerror})")
    return DamagedFile(f"{path} is damaged ({error.strerror})")


def remove(entry: Entry) -> None:
    """Remove an entry, whatever stands in its place. No error."""
    with contextlib.suppress(OSError), _locked(fcntl.LOCK_EX, entry.manifest.parent):
        _remove(entry.manifest)
        _remove(entry.data)


class NoRoom(OSError):
    """The bound of the cache leaves no room."""


def new_files(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    limit: int | None = None,
    folder: Path | None = None,
) -> dict[str, TensorFile]:
    """Files by name, which nobody else has and which are no entries yet, in the cache's folder or another one.

    limit: bytes of the whole cache, from which entries are deleted to keep it; None: nothing is deleted.
    Raises OSError, which names the folder; then there are no files.
    """
    place, files = cache_folder(KIND) if folder is None else folder, dict[str, TensorFile]()
    try:
        # One command at a time counts and makes files, so that no two take the same room.
        with _locked(fcntl.LOCK_EX, place) if folder is None else contextlib.nullcontext():
            need = sum(entry_size(shape, dtypes[name]) for name, shape in shapes.items())
            if limit is not None and not _make_room(place, need, limit):
                raise NoRoom(
                    f"run.feature_cache is {sized(limit)}, and features in use, or of other users, leave no room in it; give more"
                )
            for name, shape in shapes.items():
                files[name] = TensorFile(_new_path(place, name), shape, dtypes[name])
        for file in files.values():
            file.reserve()
    except BaseException as error:
        for file in files.values():
            drop(file)
        if isinstance(error, OSError) and error.errno and str(error.filename or PART).endswith(PART):
            raise OSError(error.errno, error.strerror, str(place)) from error
        raise
    return files


def drop(file: TensorFile) -> None:
    """Delete a file, unless it has become an entry, and close it. No error."""
    with contextlib.suppress(OSError):
        file.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        file.close()


def shrink(limit: int) -> None:
    """Delete entries until the cache has at most `limit` bytes: see `new_files`. No error."""
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache_folder(KIND)
        if folder.is_dir():
            with _locked(fcntl.LOCK_EX, folder):
                _make_room(folder, 0, limit)


def _new_path(folder: Path, stem: str) -> Path:
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{stem}.", suffix=PART)
    os.close(handle)
    os.unlink(name)
    return Path(name)


def _make_room(folder: Path, need: int, limit: int) -> bool:
    """Delete entries, those that were not used for longest first and none that is in use, until `need` more bytes fit into `limit`.

    Also what killed processes left. Returns whether they fit; if they cannot, no entry is deleted for them. Raises OSError.
    """
    total, entries = 0, list[tuple[float, Path, int]]()
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            status = path.lstat()
            if path.suffix == PART or (path.suffix == DATA and not path.with_suffix(MANIFEST).exists()):
                with contextlib.suppress(OSError):
                    if unused(path):
                        path.unlink()
                        continue
            total += status.st_size
            if path.suffix == MANIFEST:
                data = path.with_suffix(DATA)
                size = status.st_size + (data.lstat().st_size if os.path.lexists(data) else 0)
                entries.append((status.st_mtime, path, size))
    free = [(path, size) for _, path, size in sorted(entries) if _free(path.with_suffix(DATA))]
    if need and total + need - sum(size for _, size in free) > limit:
        return False
    for manifest, size in free:
        if total + need <= limit:
            break
        with contextlib.suppress(OSError):  # another user's
            _remove(manifest)
            _remove(manifest.with_suffix(DATA))
            total -= size
    return total + need <= limit


def _free(data: Path) -> bool:
    """Whether nobody uses the file of an entry, which may be gone."""
    try:
        return not data.exists() or unused(data)
    except OSError:  # it is no file, or there are no locks
        return data.is_dir()


def publish(entry: Entry, file: TensorFile) -> None:
    """Give a finished file the place of an entry; nothing if another command was faster. Raises OSError."""
    digest = file.digest()
    record = {"key": entry.key, "shape": list(file.shape), "dtype": CODES[file.dtype], "sha256": digest}
    with _locked(fcntl.LOCK_EX, entry.manifest.parent):
        if entry.manifest.exists() and entry.data.exists():
            return
        _remove(entry.manifest)
        _remove(entry.data)
        os.replace(file.path, entry.data)
        write_record(entry.manifest, record, shared=True)


def entry_size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes that an entry takes; the manifest has less than a block of 4 KiB."""
    return tensor_file_size(shape, dtype) + 4096


def entries_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each file of the entries in a folder of the cache, with what is wrong with it; "" if it is what was written."""
    for manifest in sorted(folder.glob(f"[!.]*{MANIFEST}")):
        try:
            record = read_record(manifest)
            shape, dtype, digest = tuple(record["shape"]), DTYPES[record["dtype"]], record["sha256"]
        except (DamagedFile, KeyError, TypeError) as error:
            yield manifest, str(error) if isinstance(error, DamagedFile) else "it does not describe features"
            continue
        yield manifest, ""
        data = manifest.with_suffix(DATA)
        try:
            mapped(data, shape, dtype, digest)
            yield data, ""
        except OSError as error:
            yield data, error.strerror or str(error)


@contextlib.contextmanager
def _locked(kind: int, folder: Path) -> Iterator[None]:
    """Among processes that change the folder. Who only reads goes on where there is no lock (a folder that cannot be written)."""
    reads = kind == fcntl.LOCK_SH
    try:
        if reads:
            handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            handle = open_for_lock(folder / LOCK, os.O_CREAT)
    except OSError:
        if not reads:
            raise
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
