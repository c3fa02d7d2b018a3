"""Tensors in a file with their digest, so that a file which is not what was written is named and never used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import write_tensors
from .manifest import DamagedFile

DIGEST = "digest"
"""The entry of the header that holds it."""


def write_digested(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, detached, with the digest of all of them."""
    rows = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, rows, {DIGEST: digest_of_tensors(rows)})


def read_digested(path: Path, *, needed: bool = True) -> dict[str, Tensor]:
    """Read them. needed: whether a file without a digest is damaged. Raises DamagedFile, also for a file that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            written = (file.metadata() or {}).get(DIGEST)
    except (OSError, SafetensorError) as error:
        raise DamagedFile(f"{path} cannot be read ({error})") from error
    if written != digest_of_tensors(tensors) and (needed or written is not None):
        raise DamagedFile(f"{path} is damaged (its digest differs from that of its tensors)")
    return tensors


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of names, shapes and numbers, of contiguous tensors on the CPU."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype} ".encode())
        found.update(tensors[name].numpy().tobytes())
    return found.hexdigest()
