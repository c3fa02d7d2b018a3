"""Files that exist whole or not at all: written under another name, synced to disk, then renamed; and their digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """Write a text file and sync it; a half-written file never stands under the final name.

    shared: several processes may write this file at the same time, with no lock between them.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft" if shared else f".{path.name}.draft")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        if shared:  # each process has its own draft, which no later process would overwrite
            draft.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, contiguous, and sync the file; tensors that share memory are each written in full."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, metadata)
    sync(path)


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
