"""TIFFs of which Pillow would keep a part: with more bands than colours, or with 16 bits of each of several channels.

Such a file's strips or tiles are decompressed by Pillow as if they were gray pictures of bytes, and the values put together here. So each
compression without loss that Pillow knows is read, bounded as every picture, and no further package is needed.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .store import DamagedImage, three_channels

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_BAND_BYTES = 8 * 89_478_485
"""Of the values of a picture: eight for each pixel of the largest picture (`MAX_PIXELS`)."""

PIECE = 1 << 26
"""Bytes of values that are decompressed at a time, or one row of tiles."""

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORDER, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 266, 274, 277
ROWS, PLANAR, PREDICTOR, EXTRA, FORMAT = 278, 284, 317, 338, 339
STRIPS, STRIP_SIZES, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES = 273, 279, 322, 323, 324, 325
"""Tags of TIFF 6.0."""

TAG_KINDS = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
COLOUR_CHANNELS = {0: 1, 1: 1, 2: 3}
"""Channels of the photometric interpretations whose values are read as they are: gray from white, from black, and RGB."""

LOSSLESS = (1, 5, 8, 32946, 32773, 34925, 50000)
"""None, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard."""

ALPHA = (1, 2)


class BandForm(NamedTuple):
    """How a TIFF's first page is stored. bits: of each sample. kept: the samples that are no transparency. parts: planes of own tiles.

    tile: (height, width) of a strip or tile. starts, sizes: their places. order: < or >.
    """

    shape: tuple[int, int, int]
    bits: int
    kept: list[int]
    parts: int
    tile: tuple[int, int]
    tiled: bool
    starts: list[int]
    sizes: list[int]
    compression: int
    differences: bool
    orientation: int
    order: str


def bands_of(content: bytes | bytearray) -> Tensor | None:
    """uint8 or uint16 [C, H, W], all channels but transparency, upright, gray as three; None for a file that Pillow reads whole.

    Raises DamagedImage for values, or a compression, that are not read, and what Pillow raises for damage.
    """
    if (form := form_in(content)) is None:
        return None
    height, width, samples = form.shape
    if height * width * samples * form.bits // 8 > MAX_BAND_BYTES:
        raise Image.DecompressionBombError
    values = np.empty(form.shape, np.uint8 if form.bits == 8 else np.uint16)
    each = samples // form.parts
    for part in range(form.parts):
        for top, piece in pieces_of_plane(content, form, part):
            values[top : top + len(piece), :, part * each : (part + 1) * each] = piece
    kept = values if len(form.kept) == samples else values[..., form.kept]
    return three_channels(
        torch.from_numpy(np.ascontiguousarray(turned_upright(kept, form.orientation))).permute(2, 0, 1)
    )


def form_in(content: bytes | bytearray) -> BandForm | None:
    """How a TIFF's first page is stored; None for a file that Pillow reads whole. Raises DamagedImage as `bands_of`."""
    if bytes(content[:4]) not in TIFF_STARTS:
        return None
    try:
        tags = tags_of(content)
    except (struct.error, ValueError, IndexError, OverflowError):  # damage: Pillow says it
        return None
    return form_of(tags, "<" if content[:2] == b"II" else ">")


def tags_of(content: bytes | bytearray) -> dict[int, list[int]]:
    """The whole numbers in the tags of the first page of a TIFF or BigTIFF. Raises struct.error or ValueError if they are cut off."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    pointer, number, entry, inline = ("Q", "Q", 20, 8) if big else ("L", "H", 12, 4)
    at = struct.unpack_from(order + pointer, content, 8 if big else 4)[0]
    count = struct.unpack_from(order + number, content, at)[0]
    found: dict[int, list[int]] = {}
    for start in range(at + struct.calcsize(number), at + struct.calcsize(number) + min(count, 1 << 16) * entry, entry):
        tag, kind, length = struct.unpack_from(f"{order}HH{pointer}", content, start)
        if kind in TAG_KINDS and length:
            dtype, place = np.dtype(order + TAG_KINDS[kind]), start + 4 + inline
            if length * dtype.itemsize > inline:
                place = struct.unpack_from(order + pointer, content, place)[0]
            found[tag] = np.frombuffer(content, dtype, length, place).tolist()
    return found


def form_of(tags: dict[int, list[int]], order: str) -> BandForm | None:
    """None for a page that Pillow reads whole, or cannot read. Raises DamagedImage for one that neither it nor this reads."""

    def one(tag: int, default: int) -> int:
        return tags.get(tag, [default])[0]

    samples, bits, colours = one(SAMPLES, 1), tags.get(BITS, [1]), COLOUR_CHANNELS.get(one(PHOTOMETRIC, -1))
    extra = tags.get(EXTRA, [])
    if colours is None or samples < 2 or len(extra) >= samples or not one(WIDTH, 0) or not one(HEIGHT, 0):
        return None
    alpha = {samples - len(extra) + k for k, kind in enumerate(extra) if kind in ALPHA}
    if samples - len(alpha) == colours and max(bits) <= 8:
        return None
    refuse(tags, samples - len(alpha), bits)
    shape, tiled, parts = (one(HEIGHT, 0), one(WIDTH, 0), samples), TILES in tags, samples if one(PLANAR, 1) == 2 else 1
    tile = (one(TILE_HEIGHT, 0), one(TILE_WIDTH, 0)) if tiled else (min(one(ROWS, shape[0]), shape[0]), shape[1])
    starts, sizes = tags.get(TILES if tiled else STRIPS, []), tags.get(TILE_SIZES if tiled else STRIP_SIZES, [])
    if min(tile) < 1 or not len(starts) == len(sizes) == parts * (-(shape[0] // -tile[0])) * (-(shape[1] // -tile[1])):
        raise DamagedImage("cannot be decoded (it has other strips or tiles than its size needs); replace or remove it")
    kept = [k for k in range(samples) if k not in alpha]
    return BandForm(
        shape, bits[0], kept, parts, tile, tiled, starts, sizes, one(COMPRESSION, 1), one(PREDICTOR, 1) == 2,
        one(ORIENTATION, 1), order,
    )  # fmt: skip


def refuse(tags: dict[int, list[int]], bands: int, bits: list[int]) -> None:
    """Raises DamagedImage for values, or a compression, of several bands that are not read."""
    compression = tags.get(COMPRESSION, [1])[0]
    wrong = [
        words
        for words, holds in (
            (f"{max(bits)} bits a value", set(bits) not in ({8}, {16})),
            ("values that are no whole numbers from 0 on", set(tags.get(FORMAT, [1])) - {1, 4}),
            (f"the compression {compression}", compression not in LOSSLESS),
            (f"the predictor {tags.get(PREDICTOR, [1])[0]}", tags.get(PREDICTOR, [1])[0] not in (1, 2)),
            ("white as 0", tags[PHOTOMETRIC][0] == 0),
            ("its bits in reverse", tags.get(ORDER, [1])[0] != 1),
        )
        if holds
    ]
    if wrong:
        raise DamagedImage(
            f"its {bands} channels have {wrong[0]}, which is not read; save it with 8 or 16 bits, uncompressed or with LZW or Deflate"
        )


def pieces_of_plane(content: bytes | bytearray, form: BandForm, part: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each piece of a plane, and its values [rows, W, samples of the plane]."""
    (height, width, samples), (rows, columns) = form.shape, form.tile
    size, each = form.bits // 8, samples // form.parts
    across, down = -(width // -columns), -(height // -rows)
    at_once = max(1, PIECE // max(1, rows * width * each * size))  # rows of tiles
    for first in range(0, down, at_once):
        last = min(first + at_once, down)
        numbers = range((part * down + first) * across, (part * down + last) * across)
        tiles = [bytes(content[form.starts[k] : form.starts[k] + form.sizes[k]]) for k in numbers]
        if any(len(tile) < form.sizes[k] for tile, k in zip(tiles, numbers, strict=True)):
            raise OSError("image file is truncated")
        top, bottom = first * rows, min(last * rows, height)
        gray = np.asarray(decompressed(tiles, (bottom - top, width * each * size), (rows, columns * each * size), form))
        stored = np.ascontiguousarray(gray).view(f"{form.order}u{size}").reshape(bottom - top, width, each)
        yield top, undone(stored.astype(f"u{size}"), columns) if form.differences else stored


def decompressed(tiles: list[bytes], shape: tuple[int, int], tile: tuple[int, int], form: BandForm) -> Image.Image:
    """The bytes of some strips or tiles as a gray picture. shape, tile: (height, width) of it, and of each, in bytes."""
    starts = np.cumsum([8, *map(len, tiles)])
    shorts = {BITS: 8, COMPRESSION: form.compression, PHOTOMETRIC: 1, SAMPLES: 1}
    longs = {WIDTH: [shape[1]], HEIGHT: [shape[0]]}
    places, sizes = starts[:-1].tolist(), [len(one) for one in tiles]
    if form.tiled:
        longs |= {TILE_WIDTH: [tile[1]], TILE_HEIGHT: [tile[0]], TILES: places, TILE_SIZES: sizes}
    else:
        longs |= {ROWS: [tile[0]], STRIPS: places, STRIP_SIZES: sizes}
    at = int(starts[-1]) + int(starts[-1]) % 2
    tables, entries = b"", []
    behind = at + 2 + 12 * (len(shorts) + len(longs)) + 4
    for tag, values in sorted({**{tag: [value] for tag, value in shorts.items()}, **longs}.items()):
        value = values[0]
        if len(values) > 1:
            value, tables = behind + len(tables), tables + struct.pack(f"<{len(values)}L", *values)
        entries.append(struct.pack("<HHLL", tag, 3 if tag in shorts else 4, len(values), value))
    ifd = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    file = b"".join([b"II*\0", struct.pack("<L", at), *tiles, bytes(at - int(starts[-1])), ifd, tables])
    with Image.open(io.BytesIO(file), formats=("TIFF",)) as picture:
        picture.load()
        return picture.copy()


def undone(differences: np.ndarray, columns: int) -> np.ndarray:
    """Values [H, W, C] of which each but the first of a tile's row was stored as its difference to the one before."""
    for left in range(0, differences.shape[1], columns):
        tile = differences[:, left : left + columns]
        np.cumsum(tile, axis=1, dtype=tile.dtype, out=tile)
    return differences


def turned_upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Stored values [H, W, C] upright, by the tag Orientation."""
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[::-1] if orientation in (3, 4, 7, 8) else values
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values
