"""Every kind of picture file, and every way in which one can be broken."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.decode import MAX_PIXELS, decode, is_picture
from rootstock.core.images.source import DamagedImage, open_images

HEIGHT, WIDTH = 5, 7


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def colours(*shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written out byte by byte (RFC 2083)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_colour(kind: str) -> None:
    pixels = colours(HEIGHT, WIDTH, 3).astype(np.uint8) // 128 * 255  # eight colours, so that GIF's palette is exact
    image = decode(encoded(Image.fromarray(pixels), kind), "x")
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_gray_becomes_three_equal_channels(mode: str) -> None:
    gray = Image.fromarray(colours(HEIGHT, WIDTH).astype(np.uint8)).convert(mode)
    image = decode(encoded(gray, "PNG"), "x")
    assert image.shape == (3, HEIGHT, WIDTH)
    for channel in image:
        assert np.array_equal(channel.numpy(), np.asarray(gray.convert("L")))


def test_sixteen_bit_gray_png_and_tiff() -> None:
    deep = colours(HEIGHT, WIDTH, high=65536).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(deep), kind), "x")
        assert image.dtype == torch.uint16
        assert image.shape == (3, HEIGHT, WIDTH)
        assert all(np.array_equal(channel.numpy(), deep) for channel in image)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bit_colour_and_alpha_keep_their_sixteen_bits(colour: int, channels: int) -> None:
    deep = colours(HEIGHT, WIDTH, channels, high=65536).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    image = decode(png(WIDTH, HEIGHT, 16, colour, rows), "x")
    assert image.dtype == torch.uint16
    shown = deep[..., :3] if channels >= 3 else deep[..., :1].repeat(3, axis=2)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), shown.astype(np.uint16))


def test_palette_with_and_without_transparency() -> None:
    pixels = colours(HEIGHT, WIDTH, 3).astype(np.uint8) // 128 * 255
    palette = Image.fromarray(pixels).quantize(16)
    for options in ({}, {"transparency": bytes([0, 128, 255])}):
        image = decode(encoded(palette, "PNG", **options), "x")
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(palette.convert("RGB")))


def test_transparency_is_dropped_and_cmyk_converted() -> None:
    rgba = colours(HEIGHT, WIDTH, 4).astype(np.uint8)
    assert np.array_equal(decode(encoded(Image.fromarray(rgba), "PNG"), "x").permute(1, 2, 0).numpy(), rgba[..., :3])
    cmyk = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
    image = decode(encoded(cmyk, "JPEG", quality=100), "x")
    assert image.shape == (3, HEIGHT, WIDTH)
    assert image[0].min() > 250
    assert image[1:].max() < 5


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    """The stored picture is made from the upright one by numpy, by the tag's definition: where row 0 and column 0 are."""
    upright = colours(HEIGHT, WIDTH, 3).astype(np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert np.array_equal(decode(content, "x").permute(1, 2, 0).numpy(), upright)


def test_unreadable_exif_does_not_damage_a_picture() -> None:
    picture = Image.fromarray(colours(16, 16, 3).astype(np.uint8))
    content = encoded(picture, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff")
    assert decode(content, "x").shape == (3, 16, 16)


def test_broken_files_raise_and_name_the_file(tmp_path: Path) -> None:
    whole = Image.fromarray(colours(40, 40, 3).astype(np.uint8))
    for name, content in {
        "whole.png": encoded(whole, "PNG"),
        "short.jpg": encoded(whole, "JPEG")[:-300],
        "short.png": encoded(whole, "PNG")[:200],
        "head.webp": encoded(whole, "WEBP")[:20],
        "empty.jpg": b"",
        "text.gif": b"this is no picture",
        "float.tiff": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        "wide.tiff": encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"),
    }.items():
        (tmp_path / name).write_bytes(content)
    images = open_images(f"folder:{tmp_path}")
    sentences = {}
    for i in range(len(images)):
        if images.name(i) == "whole.png":
            assert images.read(i).shape == (3, 40, 40)
            continue
        with pytest.raises(DamagedImage) as raised:
            images.read(i)
        sentences[images.name(i)] = str(raised.value)
        assert str(tmp_path / images.name(i)) in sentences[images.name(i)]
    assert "empty (0 bytes)" in sentences["empty.jpg"]
    assert "not a picture that Pillow knows" in sentences["text.gif"]
    assert "truncated" in sentences["short.jpg"]
    assert "floating-point" in sentences["float.tiff"]
    assert "32 bits" in sentences["wide.tiff"]
    assert issubclass(DamagedImage, UserError)


def test_a_file_that_vanishes_is_damage_that_names_it(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "here.png")
    images = open_images(f"folder:{tmp_path}")
    (tmp_path / "here.png").unlink()
    with pytest.raises(DamagedImage, match=r"here\.png: cannot be read \(No such file"):
        images.read(0)
    with pytest.raises(DamagedImage, match=r"here\.png"):
        images.keys()


@pytest.mark.parametrize("side", [9_460, 12_000, 20_000])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    """A few bytes that announce more pixels than the limit: Pillow lets the first pass with a warning."""
    assert side * side > MAX_PIXELS
    with pytest.raises(DamagedImage, match=r"bomb\.png: more than 89 million pixels"):
        decode(png(side, side, 1, 0, b"\0"), "bomb.png")


def test_names_of_pictures() -> None:
    for name in ("a.jpg", "b/c.JPEG", "d.e.PnG", "f.tif"):
        assert is_picture(name)
    for name in ("a.txt", ".a.jpg", "b/._c.jpg", "jpg", "a.jpg.part"):
        assert not is_picture(name)
