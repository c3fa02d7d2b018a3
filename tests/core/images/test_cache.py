"""The cache between runs, and when its entries must not be used."""

import errno
import hashlib
import os
import tarfile
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images import cache
from rootstock.core.images.open import DamagedImage, open_images
from rootstock.core.images.sources import files, tar_index


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache that accepts files written a moment ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SETTLED_SECONDS", -1.0)
    return tmp_path / "cache" / "rootstock"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each file that is hashed."""
    calls: list[int] = []
    real = files.sha256_key
    monkeypatch.setattr(files, "sha256_key", lambda content: (calls.append(1), real(content))[1])
    return calls


def drawn(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (5, 5), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.bmp")  # all of one size in bytes
    return folder


def by_hand(folder: Path) -> list[int]:
    contents = [file.read_bytes() for file in sorted(folder.iterdir())]
    return [int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True) for content in contents]


def test_files_are_hashed_once(tmp_path: Path, home: Path, hashed: list[int]) -> None:
    folder = drawn(tmp_path / "set")
    assert open_images(f"folder:{folder}").keys().tolist() == by_hand(folder)
    assert len(hashed) == 6
    assert open_images(f"folder:{folder}").keys().tolist() == by_hand(folder)
    assert len(hashed) == 6


def test_a_changed_file_is_hashed_again_even_with_the_old_size_and_time(
    tmp_path: Path, home: Path, hashed: list[int]
) -> None:
    folder = drawn(tmp_path / "set")
    before = open_images(f"folder:{folder}")
    before.keys()
    file = folder / "3.bmp"
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = open_images(f"folder:{folder}")
    assert after.keys().tolist() == by_hand(folder)
    assert (after.keys() != before.keys()).nonzero().flatten().tolist() == [3]
    assert after.split_hash() != before.split_hash()
    assert len(hashed) == 12


def test_a_set_written_a_moment_ago_is_not_remembered(
    tmp_path: Path, home: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SETTLED_SECONDS", 3600.0)
    folder = drawn(tmp_path / "set")
    for _ in range(2):
        open_images(f"folder:{folder}").keys()
    assert len(hashed) == 12


def test_a_set_with_an_unreadable_file_is_not_remembered(
    tmp_path: Path, home: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its substitute identity depends only on its size; the true one is computed once the file can be read."""
    folder, real = drawn(tmp_path / "set"), files.FileStore.content

    def content(store: files.FileStore, i: int) -> bytes | bytearray:
        if i == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(store, i)

    found = []
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(files.FileStore, "content", content)
            images = open_images(f"folder:{folder}")
            found.append(images.keys())
        with pytest.raises(DamagedImage, match=r"3\.bmp: cannot be read \(Input/output error\)"):
            images.read(3)
    assert found[0].equal(found[1])
    true = open_images(f"folder:{folder}").keys()
    assert true.tolist() == by_hand(folder)
    assert (true != found[0]).nonzero().flatten().tolist() == [3]
    assert len(list((home / "keys").iterdir())) == 1


def test_a_damaged_entry_is_not_believed(tmp_path: Path, home: Path) -> None:
    folder = drawn(tmp_path / "set")
    open_images(f"folder:{folder}").keys()
    (entry,) = (home / "keys").iterdir()
    for damage in (
        lambda content: bytes([content[40] ^ 1]).join([content[:40], content[41:]]),
        lambda content: content[:20],
    ):
        entry.write_bytes(damage(entry.read_bytes()))
        assert open_images(f"folder:{folder}").keys().tolist() == by_hand(folder)


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    folder = drawn(tmp_path / "set")
    assert open_images(f"folder:{folder}").keys().tolist() == by_hand(folder)


def test_an_archive_is_unpacked_and_indexed_once_and_again_when_it_changes(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[Path] = []
    real = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda unpacked, *rest: (scans.append(unpacked), real(unpacked, *rest))[1])
    folder, archive = drawn(tmp_path / "set"), tmp_path / "set.tar.gz"

    def pack() -> None:
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(folder, arcname="set")

    pack()
    for _ in range(3):
        assert open_images(f"tar:{archive}").keys().tolist() == by_hand(folder)
    assert len(scans) == 1
    assert len(list((home / "archives").glob("*.tar"))) == 1
    (folder / "0.bmp").write_bytes((folder / "1.bmp").read_bytes())
    pack()
    assert open_images(f"tar:{archive}").keys().tolist() == by_hand(folder)
    assert len(scans) == 2


def test_a_failed_unpacking_leaves_nothing_behind(tmp_path: Path, home: Path) -> None:
    archive = tmp_path / "broken.tar.gz"
    archive.write_bytes(b"\x1f\x8b not gzip at all")
    with pytest.raises(UserError, match="damaged or cut short"):
        open_images(f"tar:{archive}")
    assert [file.name for file in (home / "archives").iterdir() if not file.name.endswith(".lock")] == []


def test_of_several_that_ask_at_once_one_makes(tmp_path: Path) -> None:
    """flock works between open files, so threads can replace processes here."""
    made: list[int] = []
    together = threading.Barrier(4)

    def make(file: BinaryIO) -> None:
        made.append(1)
        file.write(b"whole")

    def ask() -> None:
        together.wait()
        assert cache.made_once(tmp_path / "deep" / "x.tar", make).read_bytes() == b"whole"

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
