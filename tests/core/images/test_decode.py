"""Every kind of picture file, and every way in which one can be broken."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images import decode as decoding
from rootstock.core.images.decode import (
    MAX_PIXELS,
    JpegDecoder,
    decode,
    decode_by_pillow,
    decode_scaled,
    fast_decoder,
    is_picture,
    plain_jpeg_size,
)
from rootstock.core.images.open import DamagedImage, open_images

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
    assert image.permute(1, 2, 0).is_contiguous()  # channels together, as decoders write them
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
    """numpy turns the upright image into the stored one, by the tag's definition of row 0 and column 0."""
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
    assert "not a picture of a format that is read" in sentences["text.gif"]
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
    (key,) = images.keys().tolist()
    Image.new("RGB", (4, 4)).save(tmp_path / "here.png")
    assert open_images(f"folder:{tmp_path}").keys().tolist() != [key]
    with pytest.raises(DamagedImage, match=r"here\.png: cannot be read \(No such file"):
        images.read(0)  # its identity is a substitute, so it stays unusable


@pytest.mark.parametrize("side", [9_460, 12_000, 20_000])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    """A few bytes that declare more pixels than the limit; Pillow accepts the first file with a warning."""
    assert side * side > MAX_PIXELS
    with pytest.raises(DamagedImage, match=r"bomb\.png: more than 89 million pixels"):
        decode(png(side, side, 1, 0, b"\0"), "bomb.png")


def test_names_of_pictures() -> None:
    for name in ("a.jpg", "b/c.JPEG", "d.e.PnG", "f.tif"):
        assert is_picture(name)
    for name in ("a.txt", ".a.jpg", "b/._c.jpg", "jpg", "a.jpg.part"):
        assert not is_picture(name)


def photo(height: int, width: int) -> Image.Image:
    """Smooth colours with some noise, typical for a JPEG."""
    coarse = Image.fromarray(colours(4, 4, 3).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(1).integers(0, 32, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) * 0.8 + noise).astype(np.uint8))


def jpegs() -> dict[str, tuple[bytes, bool]]:
    """JPEGs of every kind that cameras and programs write, and whether each is a plain one."""
    picture, exif = photo(37, 53), Image.Exif()
    exif[0x0112] = 1
    upright = exif.tobytes()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    made = {f"subsampling {k}": (encoded(picture, "JPEG", subsampling=k, quality=90), True) for k in range(3)}
    return made | {
        "progressive": (encoded(picture, "JPEG", progressive=True), True),
        "gray": (encoded(picture.convert("L"), "JPEG"), True),
        "restarts": (encoded(picture, "JPEG", restart_marker_blocks=3), True),
        "rgb": (encoded(picture, "JPEG", keep_rgb=True, subsampling=0), True),
        "comment": (encoded(picture, "JPEG", comment=b"hello", dpi=(300, 300)), True),
        "profile": (encoded(picture, "JPEG", icc_profile=bytes(70_000)), True),
        "one pixel": (encoded(photo(1, 1), "JPEG"), True),
        "trailing": (encoded(picture, "JPEG") + b"something else", True),
        "exif upright": (encoded(picture, "JPEG", exif=upright), True),
        "exif turned": (encoded(picture, "JPEG", exif=exif.tobytes()), False),
        "xmp turned": (encoded(picture, "JPEG", xmp=xmp), False),
        # decoders differ in which of several segments they use
        "exif and xmp upright": (encoded(picture, "JPEG", exif=upright, xmp=b"<x:xmpmeta/>"), False),
        "cmyk": (encoded(picture.convert("CMYK"), "JPEG"), False),
    }


@pytest.mark.parametrize("kind", jpegs())
def test_every_jpeg_has_pillows_pixels(kind: str) -> None:
    content, plain = jpegs()[kind]
    expected = decode_by_pillow(content, "x")
    for form in (content, bytearray(content)):
        assert decode(form, "x").equal(expected)
        assert plain_jpeg_size(form) == ((expected.shape[1], expected.shape[2]) if plain else None)
    assert expected.shape[0] == 3


@pytest.mark.parametrize("load", [decoding._simplejpeg, decoding._torchvision], ids=["simplejpeg", "torchvision"])
def test_each_fast_decoder_has_pillows_pixels(load: Callable[[], JpegDecoder | None]) -> None:
    decoder = load()
    if not decoding._as_pillow(decoder):
        pytest.skip("it is not here, or has other pixels than Pillow, and so is not used")
    assert decoder is not None
    for kind, (content, plain) in jpegs().items():
        if plain:
            assert decoder(content).equal(decode_by_pillow(content, "x")), kind
            assert decoder(bytearray(content)).permute(1, 2, 0).is_contiguous(), kind


def test_the_first_decoder_with_pillows_pixels_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def pillows(content: bytes | bytearray) -> torch.Tensor:
        return decode_by_pillow(content, "x")

    def brighter(content: bytes | bytearray) -> torch.Tensor:
        return pillows(content) // 2 + 100

    def gray_only(content: bytes | bytearray) -> torch.Tensor:
        raise ValueError("no colours")

    for first, expected in ((pillows, pillows), (brighter, None), (gray_only, None), (None, None)):
        for second in (None, pillows):
            monkeypatch.setattr(decoding, "_simplejpeg", lambda first=first: first)
            monkeypatch.setattr(decoding, "_torchvision", lambda second=second: second)
            assert fast_decoder.__wrapped__() is (expected or second)


def test_without_it_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(photo(20, 30), "JPEG")
    expected = decode(content, "x")
    monkeypatch.setattr("rootstock.core.images.decode.fast_decoder", lambda: None)
    assert decode(content, "x").equal(expected)


def outcome(content: bytes, by: Callable[[bytes, str], torch.Tensor]) -> torch.Tensor | str:
    try:
        return by(content, "x")
    except DamagedImage as error:
        return str(error)


def test_damaged_jpegs_are_what_pillow_makes_of_them() -> None:
    """Cut short, with flipped bits and with holes: the same pixels or the same sentence as without the fast decoder."""
    whole = [content for content, _ in jpegs().values()]
    chance, kinds = random.Random(0), set()
    for _ in range(600):
        content = bytearray(chance.choice(whole))
        way = chance.random()
        if way < 0.3:
            del content[chance.randrange(len(content)) :]
        elif way < 0.9:
            for _ in range(chance.choice((1, 1, 3))):
                content[chance.randrange(min(len(content), chance.choice((700, 1 << 20))))] ^= 1 << chance.randrange(8)
        else:
            hole = chance.randrange(len(content))
            del content[hole : hole + chance.randrange(1, 40)]
        if not content:
            continue
        fast, slow = outcome(bytes(content), decode), outcome(bytes(content), decode_by_pillow)
        kinds.add(type(fast))
        assert fast.equal(slow) if isinstance(fast, torch.Tensor) and isinstance(slow, torch.Tensor) else fast == slow
    assert kinds == {torch.Tensor, str}


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_scaled_jpeg_has_the_sides_it_should_and_about_the_picture(factor: int) -> None:
    for height, width in ((64, 48), (61, 83), (8, 8), (9, 200)):
        for gray in (False, True):
            picture = photo(height, width).convert("L" if gray else "RGB")
            content, asked = encoded(picture, "JPEG", quality=95), []
            image, size = decode_scaled(content, "x", lambda h, w: (asked.append((h, w)), factor)[1])  # noqa: B023
            assert asked == [(height, width)] and size == (height, width)
            assert image.shape == (3, -(-height // factor), -(-width // factor))
            if (height, width) == (64, 48) and gray:  # whole blocks, and no colour at half the resolution
                small = picture.convert("RGB").resize((width // factor, height // factor), Image.Resampling.BOX)
                difference = image.permute(1, 2, 0).numpy().astype(int) - np.asarray(small)
                assert np.abs(difference).mean() < 2


def test_what_cannot_be_scaled_is_decoded_whole() -> None:
    contents = {kind: content for kind, (content, plain) in jpegs().items() if not plain}
    contents["png"] = encoded(photo(37, 53), "PNG")
    contents["smaller than a block"] = encoded(photo(3, 5), "JPEG")
    for content in contents.values():
        image, size = decode_scaled(content, "x", lambda height, width: 8)
        assert image.equal(decode(content, "x"))
        assert size == (image.shape[1], image.shape[2])
    with pytest.raises(DamagedImage, match=r"x: cannot be decoded \(image file is truncated"):
        decode_scaled(encoded(photo(64, 64), "JPEG")[:-200], "x", lambda height, width: 2)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA"])
def test_other_formats_are_refused_whatever_their_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, which would run what the file holds."""
    ran: list[object] = []
    monkeypatch.setattr("subprocess.check_call", lambda *args, **_: ran.append(args))
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, kind)
    with pytest.raises(DamagedImage, match="not a picture of a format that is read"):
        decode(stream.getvalue(), "a.png")
    assert not ran
