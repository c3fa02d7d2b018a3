"""What is let in has bounds: hostile files are refused in a process that has little memory and few seconds of the processor."""

import bz2
import gzip
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from rootstock.core.errors import UserError
from rootstock.core.images.limits import ALLOWANCE, RATIO, limits_of, size_of, sized
from rootstock.core.images.open import open_images

MEMORY, SECONDS = 512 << 20, 30
"""Bytes beyond what the process has after its imports, and seconds of the processor for all files together."""

CHILD = """
import json, resource, sys
from rootstock.core.images.open import open_images
from rootstock.core.errors import UserError
import safetensors.torch

used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
memory, seconds = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
spent = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 1
resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, spent + seconds))
said = {}
for uri in sys.argv[3:]:
    try:
        said[uri] = str(open_images(uri).read(0).shape)
    except UserError as error:
        said[uri] = str(error)
print(json.dumps(said))
"""
ZEROS, TIMES = bytes(1 << 20), 4096
"""Files are made of one compressed part, repeated: gzip, bzip2 and xz read on after the end of a part."""


def idx_bomb(path: Path) -> None:
    """Announces 4 GiB of pixels, and holds them."""
    start = b"\0\0\x08\3" + struct.pack(">3I", 1 << 20, 64, 64)
    path.write_bytes(gzip.compress(start) + gzip.compress(ZEROS) * TIMES)


def idx_liar(path: Path) -> None:
    """Announces two pixels, and holds 4 GiB."""
    start = b"\0\0\x08\3" + struct.pack(">3I", 2, 1, 1)
    path.write_bytes(gzip.compress(start) + gzip.compress(ZEROS) * TIMES)


def npz_bomb(path: Path) -> None:
    """128 MiB of zeros in 130 kB."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (32768, 64, 64)}".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        member.write(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text)
        for _ in range(128):
            member.write(ZEROS)


def npz_shape(path: Path) -> None:
    """A shape of 8 TB in an array of one byte."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2000000, 2000, 2000)}".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + b"x")


def tar_bomb(compress: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A compressed archive with one member of 4 GiB of zeros."""

    def write(path: Path) -> None:
        member = tarfile.TarInfo("0.png")
        member.size = TIMES << 20
        path.write_bytes(compress(member.tobuf()) + compress(ZEROS) * TIMES)

    return write


def xz_dictionary(path: Path) -> None:
    """An .xz whose header asks for a dictionary of 4 GiB."""
    whole = lzma.compress(b"x" * 1000)
    header = bytearray(whole[12 : 12 + (whole[12] + 1) * 4])
    header[4] = 40  # the size of the dictionary, 4 GiB - 1 (the .xz file format, 5.3.1)
    header[-4:] = struct.pack("<I", zlib.crc32(header[:-4]))
    path.write_bytes(whole[:12] + bytes(header) + whole[12 + len(header) :])


def pax_digits(path: Path) -> None:
    """A header of a million digits, on which the time of a pattern grows with the square of their number."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 20
    path.write_bytes(member.tobuf() + b"1" * (1 << 20) + bytes(1024))


def huge_header(path: Path) -> None:
    """A long name of 1 GiB, in a file with a hole."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    path.write_bytes(member.tobuf())
    os.truncate(path, (1 << 30) + 4096)


def huge_member(path: Path) -> None:
    """A picture of 2 GiB, in a file with a hole."""
    member = tarfile.TarInfo("0.png")
    member.size = 2 << 30
    path.write_bytes(member.tobuf())
    os.truncate(path, (2 << 30) + 1536)


def png_bomb(path: Path) -> None:
    """A folder with a picture of 96 million pixels, of which Pillow alone would only warn."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    path.mkdir()
    head = struct.pack(">IIBBBBB", 12_000, 8_000, 8, 2, 0, 0, 0)
    (path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )


BOMBS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "images-idx3-ubyte.gz": ("idx", idx_bomb, f"more than {RATIO} times its size"),
    "liar-images-idx3-ubyte.gz": ("idx", idx_liar, "more bytes where 18 are announced"),
    "bomb.npz": ("npz", npz_bomb, f"more than {RATIO} times its size"),
    "shape.npz": ("npz", npz_shape, "which are 8,000,000,000,000 bytes, and holds 1"),
    "bomb.tar.gz": ("tar", tar_bomb(gzip.compress), f"more than {RATIO} times its size"),
    "bomb.tar.bz2": ("tar", tar_bomb(bz2.compress), f"more than {RATIO} times its size"),
    "bomb.tar.xz": ("tar", tar_bomb(lzma.compress), f"more than {RATIO} times its size"),
    "dictionary.tar.xz": ("tar", xz_dictionary, "unpacking it needs more memory than there is"),
    "digits.tar": ("tar", pax_digits, "a header with a number of 100 digits"),
    "header.tar": ("tar", huge_header, "a header of 1,073,741,824 bytes"),
    "member.tar": ("tar", huge_member, "2,147,483,648 bytes, more than a picture's file may have"),
    "pixels": ("folder", png_bomb, "more than 89 million pixels"),
    "{0..3000000}.tar": ("tar", lambda path: None, "stands for 3,000,001 archives"),
}


def test_hostile_files_are_refused_in_little_memory_and_time(tmp_path: Path) -> None:
    uris = {}
    for name, (scheme, write, _) in BOMBS.items():
        write(tmp_path / name)
        uris[name] = f"{scheme}:{tmp_path / name}"
    command = [sys.executable, "-c", CHILD, str(MEMORY), str(SECONDS), *uris.values()]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    wrong = {name: said[uris[name]] for name, (*_, sentence) in BOMBS.items() if sentence not in said[uris[name]]}
    assert wrong == {} and "Warning" not in ended.stderr
    archives = tmp_path / "cache" / "rootstock" / "archives"
    assert sum(file.stat().st_size for file in archives.iterdir()) == 0, "what was begun is left behind"


def test_limits_are_options(tmp_path: Path) -> None:
    """What is honest and large is read with the options that the errors name."""
    limits = limits_of("20MB", 3, "it")
    limits.check(20 * 10**6, 10, "it")
    with pytest.raises(UserError, match=r"it: unpacked it has more than 20MB, which is its limit; add \?max_size=40MB"):
        limits.check(20 * 10**6 + 1, 10**9, "it")
    with pytest.raises(UserError, match=r"grows to more than 3 times its size.* add \?max_ratio=2000"):
        limits_of("1TB", 3, "it").check(ALLOWANCE + 31, 10, "it")
    assert [sized(count) for count in (1, 999, 1000, 1001, 2 * 10**9)] == ["1B", "999B", "1KB", "2KB", "2GB"]
    assert [size_of(text, "run.x") for text in ("20GB", "0", 0, 512, " 3 kb")] == [2 * 10**10, 0, 0, 512, 3000]
    for wrong in ("big", "-1", -1, "1.5GB", "", "1GBB", "9" * 16):
        with pytest.raises(UserError, match=r"^run.x: .* is no size; expected for example 500MB or 20GB, or 0$"):
            size_of(wrong, "run.x")
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", 10, 100, 100) + bytes(100_000)))
    with pytest.raises(UserError, match=r"more than 50KB, which is its limit; add \?max_size=100KB"):
        open_images(f"idx:{path}?max_size=50KB")
    assert len(open_images(f"idx:{path}?max_size=101KB")) == 10
    for option, sentence in (("max_size=big", "max_size=big is no size"), ("max_ratio=0", "max_ratio=0 is too small")):
        with pytest.raises(UserError, match=sentence):
            open_images(f"idx:{path}?{option}")
