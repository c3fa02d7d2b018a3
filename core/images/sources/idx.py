"""`idx:`: the format of MNIST. Read into memory as a whole, since these sets are small."""

import gzip
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...printable import printable
from ..foreign import parsing
from ..limits import RATIO, UnpackLimits, limits_of
from ..places import kind_of_place, place_named, titled
from ..store import Source
from .arrays import ARRAY_BYTES, SPLITS, array_source

IDX_IMAGES = re.compile(r"(.*?)[-_.]?images[-.]idx\d-ubyte(\.gz)?")
VALUES_AT_ONCE = 1 << 24


def open_idx(
    path: str,
    split: str | None,
    *,
    rows: str | None = None,
    max_size: str = ARRAY_BYTES,
    max_ratio: int = RATIO,
) -> Source:
    """idx:PATH, a folder of IDX files (train-images..., t10k-images...) or one images file, gzip or not.

    rows: START:END of each file's pictures in the file's order, such as 10000: for those of MNIST that are not in MNIST-M's first 10,000.
    max_size, max_ratio: how large the values of a file may be, in bytes and, for gzip, in times the file's size.
    """
    title = titled("idx", path)
    place, limits = place_named(path, title), limits_of(max_size, max_ratio, title)
    if not place.exists():
        raise UserError(f"{title}: there is no {printable(str(place))}; check the path")
    files = idx_files(place, title) if place.is_dir() else {"": place}
    parts: dict[str, tuple[Tensor, Tensor | None]] = {}
    used: list[str] = []
    for name, images in files.items():
        pixels = read_idx(images, (3, 4), "[N, H, W] or [N, C, H, W]", limits)
        stack = torch.from_numpy(pixels if pixels.ndim == 4 else pixels[:, None])
        labels = labels_beside(images)
        used += [images.name, *([labels.name] if labels else [])]
        numbers = None if labels is None else read_idx(labels, (1,), "[N]", limits).astype(np.int64)
        parts[name] = stack, None if numbers is None else torch.from_numpy(numbers)
    advice = "idx:FILE would read one file of pictures with its labels, which are named alike (images and labels)"
    unread = unread_beside(place, used) if place.is_dir() else []
    return array_source(title, parts, advice, unread, rows)


def unread_beside(folder: Path, used: Collection[str]) -> list[str]:
    """The IDX files of a folder that are not read, without those that are there a second time as .gz."""
    plain = {name.removesuffix(".gz") for name in used}
    names = sorted(file.name for file in folder.iterdir() if re.search(r"idx\d-ubyte(\.gz)?$", file.name))
    return [name for name in names if name.removesuffix(".gz") not in plain and not name.startswith(".")]


def idx_files(folder: Path, title: str) -> dict[str, Path]:
    """The image files of a folder by split; if a file also exists as .gz, the uncompressed one is used."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if not (match := IDX_IMAGES.fullmatch(file.name)) or file.name.startswith("."):
            continue
        words = re.split(r"[-_.]", match.group(1))
        name = next((SPLITS[word] for word in words if word in SPLITS), match.group(1) or "all")
        if name in files and files[name].name != file.name.removesuffix(".gz"):
            raise UserError(
                f"{title}: both {files[name].name} and {file.name} are its {name} pictures; name one file in the URI"
            )
        files.setdefault(name, file)
    if not files:
        raise UserError(
            f"{title}: no IDX pictures there; expected files like train-images-idx3-ubyte or train-images-idx3-ubyte.gz"
        )
    return dict(
        sorted(files.items(), key=lambda item: list(SPLITS.values()).index(item[0]) if item[0] in SPLITS else 99)
    )


def labels_beside(images: Path) -> Path | None:
    """train-images-idx3-ubyte.gz -> train-labels-idx1-ubyte.gz (or without .gz), if it is there."""
    name = re.sub(r"idx\d", "idx1", images.name.replace("images", "labels")).removesuffix(".gz")
    if name == images.name.removesuffix(".gz"):
        return None
    return next((file for file in (images.with_name(name), images.with_name(name + ".gz")) if file.is_file()), None)


def read_idx(file: Path, dimensions: Collection[int], expected: str, limits: UnpackLimits) -> np.ndarray:
    """An IDX file of bytes: two zeros, a type code, the number of dimensions, their sizes (big-endian), the values.

    dimensions: the numbers of dimensions that are read; expected: the same in words. The sizes are checked before the values are read.
    Raises UserError if the file is damaged, cut short, of another type, or larger than its limits.
    """
    where = printable(str(file))
    with parsing(where, "fetch it again"):
        status = file.stat()
    if not file.is_file():
        raise UserError(f"{where}: it is {kind_of_place(status.st_mode)}, and no file; copy its content to a file")
    with parsing(where, "fetch it again"), open(file, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        shape = idx_shape(stream, where, dimensions, expected)
        start = 4 + 4 * len(shape)
        announced = start + math.prod(shape)
        limits.check(announced, status.st_size, where)
        if not packed and status.st_size != announced:
            raise UserError(f"{where}: {status.st_size} bytes where {announced} are announced {shape}; fetch it again")
        values = np.empty(announced - start, dtype=np.uint8)
        done = 0
        while done < len(values) and (part := stream.read(min(VALUES_AT_ONCE, len(values) - done))):
            values[done : done + len(part)] = np.frombuffer(part, dtype=np.uint8)
            done += len(part)
        if done < len(values) or stream.read(1):
            found = f"{start + done} bytes" if done < len(values) else "more bytes"
            raise UserError(f"{where}: {found} where {announced} are announced {shape}; fetch it again")
    return values.reshape(shape)


def idx_shape(stream: Any, where: str, dimensions: Collection[int], expected: str) -> list[int]:
    """The sizes in the header of an IDX file."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise UserError(f"{where}: not an IDX file (it must begin with two zero bytes)")
    if start[2] != 0x08:
        raise UserError(f"{where}: its values are not bytes (type code {start[2]:#04x}); expected 0x08")
    if start[3] not in dimensions:
        raise UserError(f"{where}: its values have {start[3]} dimensions; expected {expected}")
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise UserError(f"{where}: the file ends within its header; fetch it again")
    shape = np.frombuffer(sizes, dtype=">u4").astype(np.int64).tolist()
    if 0 in shape:
        raise UserError(f"{where}: it announces {shape}, so it holds no values; fetch it again")
    return shape
