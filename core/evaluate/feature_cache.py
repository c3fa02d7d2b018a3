"""The cache of features: one file for each tap of each set, network and view, mapped when it is used, and bounded in size.

    NAME.safetensors   the features, float16 or float32 [N, ...], row i for picture i
    NAME.json          what they are of, in plain words (`key`), their shape and dtype, and the sha256 of the other file

NAME is a hash of the key. Whatever fails costs time, never a number: the features are then computed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..images.cache import cache_folder
from ..manifest import DamagedFile, read_record, write_record
from .tensor_file import CODES, TensorFile, mapped, opened_tensor, tensor_file_size, unused

KIND = "features"  # the cache's folder of this name
DATA, MANIFEST, PART = ".safetensors", ".json", ".part"
LOCK = ".lock"
NEW_SECONDS = 60.0
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

    Raises DamagedFile, naming the file, if the entry is not what was written.
    """
    with _locked(fcntl.LOCK_SH, entry.manifest.parent):
        try:
            record = read_record(entry.manifest)
        except FileNotFoundError:
            return None
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
            raise DamagedFile(f"{entry.data} is damaged ({error.strerror})") from error
    try:
        found = mapped(handle, shape, dtype, digest if check else None)
    except OSError as error:
        raise DamagedFile(f"{entry.data} is damaged ({error.strerror})") from error
    with contextlib.suppress(OSError):
        os.utime(entry.manifest)  # the entry that was not used for longest goes first
    return found


def remove(entry: Entry) -> None:
    """Remove an entry, whatever stands in its place. No error."""
    with contextlib.suppress(OSError), _locked(fcntl.LOCK_EX, entry.manifest.parent):
        _remove(entry.manifest)
        _remove(entry.data)


def new_file(folder: Path, stem: str, shape: tuple[int, ...], dtype: torch.dtype) -> TensorFile:
    """A file that nobody else has, under a name that is no entry's. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{stem}.", suffix=PART)
    os.close(handle)
    os.unlink(name)
    return TensorFile(Path(name), shape, dtype)


def make_room(need: int, limit: int) -> bool:
    """Delete entries, those that were not used for longest first and none that is in use, until `need` more bytes fit into `limit`.

    Also what killed processes left. Returns whether they fit. Raises OSError.
    """
    folder = cache_folder(KIND)
    with _locked(fcntl.LOCK_EX, folder):
        total = need
        entries: list[tuple[float, Path]] = []
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            with contextlib.suppress(OSError):
                status = path.lstat()
                # A part is locked a moment after it was made.
                part = path.suffix == PART and time.time() - status.st_mtime > NEW_SECONDS
                if (part or (path.suffix == DATA and not path.with_suffix(MANIFEST).exists())) and unused(path):
                    path.unlink()
                    continue
                total += status.st_size
                if path.suffix == MANIFEST:
                    entries.append((status.st_mtime, path))
        for _, manifest in sorted(entries):
            if total <= limit:
                break
            data = manifest.with_suffix(DATA)
            with contextlib.suppress(OSError):
                if not data.exists() or unused(data):
                    total -= manifest.lstat().st_size + (data.lstat().st_size if data.exists() else 0)
                    _remove(manifest)
                    _remove(data)
        return total <= limit


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
    if not reads:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | (0 if reads else os.O_CREAT), 0o666)
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
