"""Any archive and any file of arrays is read, or refused with a sentence."""

import gzip
import io
import math
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from rootstock.core.images.open import open_images
from rootstock.tests.fuzz import DEPTHS, changed, fuzz, read_all

SIZES = st.sampled_from([0, 1, 2, 511, 512, 513, -1, -512, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 70])


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3 + number, 4), (80 * number, 9, 200)).save(stream, "PNG")
    return stream.getvalue()


PICTURES = [picture(k) for k in range(3)]
ORDINARY = ("0.png", "1.png", "a/0.png", "a/1.png", "b/0.png", "0.cls", "1.cls", "a/0.cls", "0.json", "1.json", "0.txt")
ODD = (
    "../0.png",
    "/0.png",
    "a",
    "0.seg.png",
    "a.b.png",
    "train/a/0.png",
    "test/b/0.png",
    ".0.png",
    "é.png",
    "0.png/x.png",
)
LONG = "x" * 150 + ".png"
NAMES = st.sampled_from((*ORDINARY, *ODD, LONG))
ODD_TYPES = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.GNUTYPE_SPARSE,
    tarfile.GNUTYPE_LONGNAME,
)
TYPES = st.sampled_from([tarfile.REGTYPE] * 6 + [*ODD_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, b"Z"])
CONTENTS = st.sampled_from(
    [*PICTURES, b"0", b"1\n", b"cat", b'{"label": 1}', b'{"label": [1]}', b"\xff", b""]
) | st.binary(max_size=40)
MEMBERS = st.tuples(NAMES, TYPES, CONTENTS, NAMES, st.none() | SIZES, st.booleans())
PAX = st.dictionaries(
    st.sampled_from(("path", "size", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.name",
                     "GNU.sparse.realsize", "linkpath", "hdrcharset")),
    st.sampled_from(("0", "1", "-1", "1,2,3", "0,1", "x", "9" * 30, "", "a/0.png", "BINARY")), max_size=2)  # fmt: skip


def built(
    members: list[tuple[str, bytes, bytes, str, int | None, bool]], pax: dict[str, str], form: int, end: int
) -> bytes:
    """An archive whose headers may say another size, with a right checksum."""
    made = bytearray()
    for name, kind, content, link, size, extended in members:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, len(content)
        member.pax_headers = dict(pax) if extended else {}
        header = bytearray(member.tobuf(form))  # pyright: ignore[reportArgumentType]
        if size is not None:
            at = len(header) - tarfile.BLOCKSIZE
            header[at + 124 : at + 136] = size_field(size)
            header[at + 148 : at + 156] = b" " * 8
            header[at + 148 : at + 156] = b"%06o\0 " % sum(header[at:])
        made += header + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    return bytes(made + bytes(end))


def size_field(size: int) -> bytes:
    """A size of 12 bytes, as GNU tar writes those that are negative or large: in base 256."""
    if 0 <= size < 8**11:
        return b"%011o\0" % size
    return bytes([0o200 if size > 0 else 0o377]) + (size % (1 << 88)).to_bytes(11, "big")


ARCHIVES = st.builds(
    built,
    st.lists(MEMBERS, max_size=5),
    PAX,
    st.sampled_from((1, 2)),  # tarfile.GNU_FORMAT and PAX_FORMAT
    st.sampled_from((0, 100, 512, 1024, 10240)),
)
WHOLE = built(
    [(f"{k}.{e}", b"0", c, "", None, False) for k in range(3) for e, c in (("png", PICTURES[k]), ("cls", b"1"))],
    {},
    0,
    1024,
)
TAR_OPTIONS = st.sampled_from(
    (
        "",
        "?labels=none",
        "?key=last-dot",
        "?label=json:label",
        "?label=cls",
        "?label=txt",
        "?image=png",
        "?under=a",
        "?max_size=1KB",
    )
)


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_archive_is_read_or_refused(depth: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"

    def attempt(drawn: tuple[bytes, str, bool]) -> None:
        content, options, compressed = drawn
        path.write_bytes(gzip.compress(content, 1) if compressed else content)
        read_all(open_images(f"tar:{path}{options}"))

    plain = st.tuples(ARCHIVES | changed(WHOLE), TAR_OPTIONS, st.sampled_from((False, False, False, True)))
    packed = st.tuples(changed(gzip.compress(WHOLE, mtime=0)) | st.binary(max_size=600), TAR_OPTIONS, st.just(False))
    fuzz("archives", plain | packed, attempt, depth, examples=300)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, -1, 4, 255, 1 << 16, (1 << 32) - 1, 1 << 62, 10**25]), max_size=5)
DESCRIPTIONS = st.sampled_from(
    ("|u1", "<u2", ">u2", "<i8", "|b1", "<f4", "|O", "|V5", "<U3", "|S2", "x", "", "<M8[s]", "<c16")
)
HEADERS = st.builds(
    lambda descr, order, shape, extra: (
        f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': ({''.join(f'{n},' for n in shape)}), {extra}}}"
    ),
    DESCRIPTIONS,
    st.sampled_from(("True", "False", "1")),
    SHAPES,
    st.sampled_from(("", "'x': 1", "'descr': [('a', '|u1')]", "'shape': 5", "'shape': ('a',)")),
) | st.sampled_from(("[" * 900, "{", "1" * 5000, "(" * 50, "{'descr': -1}", "\x00", "'" + "\n", "b''")) | st.text(max_size=20)  # fmt: skip


def npy(header: str, content: bytes, version: int, length: int | None) -> bytes:
    text = header.encode("utf-8", "replace") + b"\n"
    size = len(text) if length is None else length % (1 << 16)
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text + content


ARRAYS = st.builds(
    npy, HEADERS, st.binary(max_size=30), st.sampled_from((1, 1, 2, 3, 9)), st.none() | st.integers(0, 1 << 16)
)
KEYS = st.sampled_from(
    ("x.npy", "y.npy", "x", "x_train.npy", "y_train.npy", "x_test.npy", "images.npy", "labels.npy", "a/x.npy", "é.npy")
)


def zipped(members: dict[str, bytes], method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def saved(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


GOOD = saved(x=np.arange(24, dtype=np.uint8).reshape(2, 3, 4), y=np.array([0, 1]))
RANDOM = st.builds(
    lambda shape, dtype, labels: saved(x=np.zeros(shape, dtype), y=np.zeros(labels, "int64")),
    st.lists(st.integers(0, 4), max_size=5),
    st.sampled_from(("uint8", "uint16", "int64", ">u2", "bool", "float32")),
    st.lists(st.integers(0, 3), max_size=3),
)
METHODS = st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
FILES = (
    st.builds(zipped, st.dictionaries(KEYS, ARRAYS | st.binary(max_size=20), max_size=3), METHODS)
    | changed(GOOD)
    | RANDOM
)
NPZ_OPTIONS = st.sampled_from(
    ("", "?images=x", "?images=x&labels=y", "?layout=NHWC", "?layout=NCHW", "?max_size=10B", "#train")
)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.filterwarnings("ignore")  # numpy and zipfile warn of what is odd, and a command goes on
def test_any_npz_is_read_or_refused(depth: str, tmp_path: Path) -> None:
    def attempt(drawn: tuple[bytes, str]) -> None:
        content, options = drawn
        (tmp_path / "x.npz").write_bytes(content)
        read_all(open_images(f"npz:{tmp_path}/x.npz{options}"))

    fuzz("npz", st.tuples(FILES | st.binary(max_size=200), NPZ_OPTIONS), attempt, depth, examples=250, share=0.5)


IDX = st.builds(
    lambda start, code, sizes, count, content: (
        start
        + bytes([code, len(sizes) if count is None else count])
        + b"".join(struct.pack(">I", n) for n in sizes)
        + content
    ),
    st.sampled_from((b"\0\0", b"\0\0", b"\0\0", b"\1\0")),
    st.sampled_from((8, 8, 8, 8, 9, 0x0D, 255)),
    st.lists(st.sampled_from((0, 1, 2, 3, 5, 255, (1 << 32) - 1)), max_size=6),
    st.none() | st.integers(0, 255),
    st.integers(0, 40).map(bytes) | st.binary(max_size=30),
)
GOOD_IDX = st.lists(st.integers(1, 3), min_size=2, max_size=4).map(
    lambda sizes: (
        b"\0\0\x08"
        + bytes([len(sizes) + 1])
        + struct.pack(f">{len(sizes) + 1}I", 2, *sizes)
        + bytes(2 * math.prod(sizes))
    )
)
PACKED = st.builds(
    lambda content, cut, junk: gzip.compress(content, 1)[: len(gzip.compress(content, 1)) - cut] + junk,
    IDX,
    st.sampled_from((0, 0, 1, 9)),
    st.sampled_from((b"", b"", b"x", zlib.compress(b"x"))),
)


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_idx_is_read_or_refused(depth: str, tmp_path: Path) -> None:
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    good = b"\0\0\x08\3" + struct.pack(">3I", 2, 3, 4) + bytes(24)

    def attempt(drawn: tuple[bytes, bytes]) -> None:
        images.write_bytes(drawn[0])
        labels.write_bytes(drawn[1])
        read_all(open_images(f"idx:{tmp_path}"))

    contents = GOOD_IDX | GOOD_IDX.map(gzip.compress) | IDX | PACKED | changed(good) | st.binary(max_size=30)
    whole = st.just(b"\0\0\x08\1\0\0\0\2\0\1")
    numbers = whole | whole | IDX | PACKED
    fuzz("idx", st.tuples(contents, numbers), attempt, depth, examples=300, share=0.5)
