"""Checksums of blocks: any changed byte is noticed by each read that touches its block, and by no other."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from rootstock.core.images import cache
from rootstock.core.images.open_files import OpenFiles
from rootstock.core.images.sums import SUMMED, Sums, sums_file


def made_of(content: bytes, path: Path) -> Path:
    """A file of the cache, written in pieces."""

    def write(file: BinaryIO) -> None:
        for k in range(0, len(content), 5000):
            file.write(content[k : k + 5000])

    return cache.made_once(path, write)


@pytest.mark.parametrize("size", [0, 1, SUMMED - 1, SUMMED, 3 * SUMMED + 17])
def test_reads_are_those_of_the_file_and_a_changed_byte_is_noticed(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    path = made_of(content, tmp_path / "x")
    assert path.read_bytes() == content
    sums, files = Sums(path), OpenFiles()
    sums.check()
    for start, end in ((0, size), (size // 3, size // 2), (max(0, size - 1), size), (min(SUMMED, size), size)):
        assert sums.read(files, end - start, start) == content[start:end]
    if size:
        with open(path, "r+b") as file:
            file.seek(size // 2)
            file.write(bytes([content[size // 2] ^ 4]))
        with pytest.raises(OSError, match=f"unpacked copy {path} has changed; delete that file"):
            sums.read(files, 1, size // 2)
        with pytest.raises(OSError, match="has changed"):
            sums.check()
    if size > 2 * SUMMED:
        assert sums.read(files, 10, 5) == content[5:15]


def test_a_copy_without_checksums_is_made_again(tmp_path: Path) -> None:
    """As earlier versions left it."""
    (tmp_path / "x").write_bytes(b"old")
    assert made_of(b"new", tmp_path / "x").read_bytes() == b"new"
    sums_file(tmp_path / "x").write_bytes(b"")
    with pytest.raises(OSError, match="is damaged; delete it"):
        Sums(tmp_path / "x")
    made_of(b"12345", tmp_path / "y").write_bytes(bytes(SUMMED + 1))
    with pytest.raises(OSError, match="has another size"):
        Sums(tmp_path / "y").check()
