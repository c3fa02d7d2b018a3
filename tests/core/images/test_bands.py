"""TIFFs of several bands and of deep colour: every value as it is stored, from folders and archives; what is not read is said."""

import io
import itertools
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.images.bands import bands_of, turned_upright
from rootstock.core.images.decode import decode
from rootstock.core.images.look import is_reduced, may_be_deep
from rootstock.core.images.open import open_images
from rootstock.core.images.store import DamagedImage
from rootstock.core.images.survey import survey

Tags = dict[int, list[int]]


def values(channels: int, bits: int, height: int = 13, width: int = 17) -> np.ndarray:
    drawn = np.random.default_rng(channels).integers(0, 1 << bits, (height, width, channels))
    return drawn.astype(np.uint8 if bits == 8 else np.uint16)


def plain_lzw(content: bytes) -> bytes:
    """LZW of TIFF 6.0 whose table is cleared so often that all codes have 9 bits."""
    codes = [code for at in range(0, len(content), 200) for code in (256, *content[at : at + 200])] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits.ljust(-(len(bits) // -8) * 8, "0"), 2).to_bytes(-(len(bits) // -8), "big")


def tiff(
    pixels: np.ndarray, compression: int = 1, predictor: int = 1, rows: int = 5, changed: Tags | None = None
) -> bytes:
    """A TIFF [H, W, C] written out by hand, with the values of pixels next to each other. changed: other tags."""
    height, width, channels = pixels.shape
    stored = pixels.copy()
    if predictor == 2:
        stored[:, 1:] -= pixels[:, :-1]
    pack = {1: bytes, 5: plain_lzw, 8: zlib.compress}[compression]
    strips = [
        pack(stored[top : top + rows].astype(stored.dtype.newbyteorder("<")).tobytes())
        for top in range(0, height, rows)
    ]
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = {
        256: [width], 257: [height], 258: [8 * pixels.itemsize] * channels, 259: [compression], 262: [2 if channels >= 3 else 1],
        273: starts[:-1], 277: [channels], 278: [rows], 279: list(map(len, strips)), 284: [1], 317: [predictor],
        338: [0] * (channels - 3 if channels >= 3 else channels - 1),
    }  # fmt: skip
    tags |= changed or {}
    tags = {tag: values for tag, values in sorted(tags.items()) if values}
    behind, entries, tables = starts[-1] + 2 + 12 * len(tags) + 4, b"", b""
    for tag, numbers in tags.items():
        place = numbers[0]
        if len(numbers) > 1:
            place, tables = behind + len(tables), tables + struct.pack(f"<{len(numbers)}L", *numbers)
        entries += struct.pack("<HHLL", tag, 4, len(numbers), place)
    return b"".join(
        [b"II*\0", struct.pack("<L", starts[-1]), *strips, struct.pack("<H", len(tags)), entries, bytes(4), tables]
    )


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 3, 4, 5, 13, 16])
@pytest.mark.parametrize(("compression", "predictor"), [(1, 1), (5, 1), (5, 2), (8, 1), (8, 2)])
def test_every_band_has_the_stored_values(channels: int, bits: int, compression: int, predictor: int) -> None:
    pixels = values(channels, bits)
    picture = decode(tiff(pixels, compression, predictor), "x")
    assert picture.dtype == (torch.uint8 if bits == 8 else torch.uint16) and picture.shape == (channels, 13, 17)
    assert np.array_equal(picture.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize(("channels", "bits"), [(5, 8), (5, 16), (16, 8), (16, 16), (3, 16)])
def test_folders_and_archives_have_all_bands(channels: int, bits: int, tmp_path: Path) -> None:
    pictures = [values(channels, bits) // (k + 1) for k in range(4)]
    for k, pixels in enumerate(pictures):
        file = tmp_path / "set" / "ab"[k % 2] / f"{k}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiff(pixels, 8, 2))
    with tarfile.open(tmp_path / "set.tar", "w") as packed:
        packed.add(tmp_path / "set", arcname="")
    for uri in (f"folder:{tmp_path}/set", f"tar:{tmp_path}/set.tar"):
        images = open_images(uri)
        for i in range(4):
            expected = pictures[int(images.name(i)[2])]
            assert np.array_equal(images.read(i).permute(1, 2, 0).numpy(), expected)
        assert survey(images).shapes == {(channels, 13, 17): 4} and not survey(images).tally.reduced


@pytest.mark.parametrize("kind", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
def test_planes_tiles_byte_orders_and_large_files_as_tifffile_writes_them(
    kind: str, tile: tuple[int, int] | None
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    ways = itertools.product((5, 13), (8, 16), (None, "zlib"), "<>", (False, True))
    for channels, bits, compression, order, big in ways:
        pixels, file = values(channels, bits, 37, 53), io.BytesIO()
        tifffile.imwrite(
            file, pixels if kind == "contig" else pixels.transpose(2, 0, 1), planarconfig=kind, photometric="minisblack", tile=tile,
            compression=compression, predictor=compression is not None, byteorder=order, bigtiff=big, metadata=None,
            rowsperstrip=None if tile else 8,
        )  # fmt: skip
        assert np.array_equal(decode(file.getvalue(), "x").permute(1, 2, 0).numpy(), pixels)


def test_transparency_is_dropped_and_gray_stays_gray() -> None:
    for bits in (8, 16):
        pixels = values(4, bits)
        assert np.array_equal(decode(tiff(pixels, changed={338: [2]}), "x").permute(1, 2, 0).numpy(), pixels[..., :3])
    deep = values(2, 16)
    picture = decode(tiff(deep, changed={338: [1]}), "x")
    assert picture.shape[0] == 3 and all(np.array_equal(channel.numpy(), deep[..., 0]) for channel in picture)
    six = values(6, 8)
    assert np.array_equal(
        decode(tiff(six, changed={338: [0, 2, 0]}), "x").permute(1, 2, 0).numpy(), six[..., [0, 1, 2, 3, 5]]
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_as_pillow_turns_colours(orientation: int) -> None:
    pixels = values(3, 8)
    by_pillow = decode(tiff(pixels, changed={274: [orientation]}), "x")
    assert np.array_equal(by_pillow.permute(1, 2, 0).numpy(), turned_upright(pixels, orientation))
    five = np.concatenate([pixels, pixels[..., :2]], 2)
    assert torch.equal(decode(tiff(five, changed={274: [orientation]}), "x")[:3], by_pillow)


def test_what_is_not_read_is_said_and_never_cut() -> None:
    pixels = values(5, 16)
    for changed, words in (
        ({339: [3] * 5}, "5 channels have values that are no whole numbers from 0 on"),
        ({258: [12] * 5}, "12 bits a value"),
        ({259: [7]}, "the compression 7"),
        ({317: [3]}, "the predictor 3"),
        ({262: [0]}, "white as 0"),
        ({273: [8]}, "other strips or tiles than its size needs"),
    ):
        with pytest.raises(DamagedImage, match=f"^x: .*{words}"):
            decode(tiff(pixels, changed=changed), "x")
    with pytest.raises(DamagedImage, match="image file is truncated"):
        decode(tiff(pixels, changed={279: [10**6] * 3}), "x")
    with pytest.raises(DamagedImage, match="decompression bomb"):
        decode(tiff(pixels, changed={256: [20_000], 257: [20_000], 278: [20_000], 273: [8], 279: [9]}), "x")
    assert bands_of(b"II*\0" + bytes(3)) is None and bands_of(b"II*\0\xff\xff\xff\xff") is None


def test_a_compressed_bomb_is_bounded_by_the_size_that_is_announced() -> None:
    bomb = tiff(np.zeros((8, 8, 5), np.uint16), 8, rows=8)
    with pytest.raises(DamagedImage, match=r"cannot be decoded|decompression bomb"):
        decode(tiff(np.zeros((40_000, 40, 5), np.uint16), 8, rows=40_000, changed={256: [30_000], 257: [40_000]}), "x")
    assert decode(bomb, "x").shape == (5, 8, 8)


def test_headers_tell_depth_and_what_is_reduced() -> None:
    assert may_be_deep(tiff(values(3, 16))) and may_be_deep(tiff(values(5, 16))) and not may_be_deep(tiff(values(5, 8)))
    assert not is_reduced(tiff(values(3, 16))) and not is_reduced(tiff(values(5, 8)))
    assert is_reduced(tiff(values(4, 16), changed={262: [5], 338: []}))  # CMYK
    colours = Image.fromarray(values(3, 8))
    for kind, mark, at in (("JPEG2000", b"\xff\x4f\xff\x51", 42), ("AVIF", b"pixi", 9)):
        if kind == "AVIF" and "AVIF" not in Image.SAVE:
            continue
        stream = io.BytesIO()
        colours.save(stream, kind)
        content = bytearray(stream.getvalue())
        assert not is_reduced(content)
        content[content.find(mark) + at] = 15 if kind == "JPEG2000" else 10
        assert is_reduced(content)
