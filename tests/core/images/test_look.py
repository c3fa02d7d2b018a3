"""Further pages and frames of a file, and 16-bit values that use few of the bits."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.decode import decode
from rootstock.core.images.look import MOST_PAGES, Tally, is_reduced, may_be_deep, pages_of
from rootstock.core.images.open import DamagedImage, open_images
from rootstock.core.images.survey import sampled_notes, survey


def frames(number: int, mode: str = "RGB") -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (number, 12, 9, 3), dtype=np.uint8)
    return [Image.fromarray(one).convert(mode) for one in noise]


def encoded(kind: str, number: int, **options: object) -> bytes:
    stream, (first, *others) = io.BytesIO(), frames(number)
    first.save(stream, kind, **({"save_all": True, "append_images": others} if number > 1 else {}), **options)
    return stream.getvalue()


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "BigTIFF"])
def test_pages_are_counted_as_pillow_counts_them(kind: str, number: int) -> None:
    content = encoded("TIFF", number, big_tiff=True) if kind == "BigTIFF" else encoded(kind, number)
    with Image.open(io.BytesIO(content)) as picture:
        assert getattr(picture, "n_frames", 1) == number
    assert pages_of(content) == pages_of(bytearray(content)) == number


def test_other_formats_have_one_page() -> None:
    assert [pages_of(encoded(kind, 1)) for kind in ("JPEG", "BMP", "PPM")] == [1, 1, 1]


def test_smaller_versions_of_a_page_do_not_count() -> None:
    stream, (first, second, _) = io.BytesIO(), frames(3)
    second.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(stream, "TIFF", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(stream.getvalue())) as picture:
        assert picture.n_frames == 2  # type: ignore[attr-defined]
    assert pages_of(stream.getvalue()) == 1


def test_damage_and_hostile_counts_are_survived() -> None:
    """Cut anywhere, no more than an exception of its own; loops and announced millions end."""
    for kind in ("TIFF", "GIF", "WEBP", "PNG"):
        content = encoded(kind, 3)
        for end in range(0, len(content), 7):
            assert 1 <= pages_of(content[:end]) <= 3
    loop = b"II*\0\x08\0\0\0" + struct.pack("<HHHLLL", 1, 256, 4, 1, 1, 8)
    assert pages_of(loop) == 1
    many = b"\x89PNG\r\n\x1a\n" + struct.pack(">L4sLL", 8, b"acTL", 2**31, 0)
    assert pages_of(many) == MOST_PAGES
    assert pages_of(b"GIF89a" + bytes(5) + b"\0\0" + b"\x21\xff" * 10) == 1


def deep(folder: Path, name: str, greatest: int) -> np.ndarray:
    """Save a 16-bit picture, [3, 4], with values from 0 to `greatest`."""
    values = (np.arange(12).reshape(3, 4) * greatest // 11).astype(np.uint16)
    Image.fromarray(values).save(folder / name)
    return values


@pytest.mark.parametrize(("name", "bits"), [("a.png", 12), ("a.tif", 12), ("a.png", 10), ("a.tiff", 14), ("a.png", 8)])
def test_the_used_bits_become_the_whole_range(tmp_path: Path, name: str, bits: int) -> None:
    greatest = (1 << bits) - 1
    values = deep(tmp_path, name, greatest)
    images = open_images(f"folder:{tmp_path}?bits={bits}")
    expected = np.floor(values.astype(float) * 65535 / greatest + 0.5).astype(np.uint16)
    assert images.read(0)[0].numpy().tolist() == expected.tolist()
    assert images.read(0).numpy().max() == 65535
    plain = open_images(f"folder:{tmp_path}")
    assert plain.read(0)[0].numpy().tolist() == values.tolist()
    assert images.fingerprint() != plain.fingerprint()  # other pixels
    assert images.split_hash() == plain.split_hash()  # of the same files
    assert images.encoded(0) is None  # so that a pack keeps the pixels
    (tmp_path / "l.txt").write_text(name)
    (tmp_path / "t.csv").write_text(f"path\n{name}\n")
    np.savez(tmp_path / "x.npz", x=values[None])
    for uri in (f"list:{tmp_path}/l.txt", f"csv:{tmp_path}/t.csv", f"npz:{tmp_path}/x.npz"):
        assert torch.equal(open_images(f"{uri}?bits={bits}").read(0), images.read(0))


def test_bits_that_are_too_few_or_no_number_of_bits(tmp_path: Path) -> None:
    deep(tmp_path, "a.png", 4095)
    Image.new("RGB", (3, 3), (1, 2, 3)).save(tmp_path / "b.png")
    images = open_images(f"folder:{tmp_path}?bits=11")
    with pytest.raises(DamagedImage, match=r"a\.png: has the value 4095, more than 11 bits hold \(2047\)"):
        images.read(0)
    assert images.read(1)[:, 0, 0].tolist() == [1, 2, 3]  # files of 8 bits stay
    for bits in (7, 17):
        with pytest.raises(UserError, match=f"bits={bits} is not possible; expected 8 to 16"):
            open_images(f"folder:{tmp_path}?bits={bits}")


@pytest.mark.parametrize("look", [lambda images: survey(images).tally.notes(), sampled_notes], ids=["all", "sample"])
def test_what_is_read_in_part_is_said(tmp_path: Path, look: Callable[..., list]) -> None:
    deep(tmp_path, "a.png", 4000)
    deep(tmp_path, "b.tif", 3000)
    (tmp_path / "c.gif").write_bytes(encoded("GIF", 4))
    (tmp_path / "d.tif").write_bytes(encoded("TIFF", 2))
    (tmp_path / "e.png").write_bytes(encoded("PNG", 1))
    pages, dim = look(open_images(f"folder:{tmp_path}"))
    assert (pages.number, pages.example, pages.level) == (2, "c.gif", "warn")
    assert "only the first is read, 4 are not" in pages.what
    assert (dim.number, dim.example, dim.level) == (2, "a.png", "warn")
    assert "no value above 4,000 of 65,535, so they are read at up to 6% of full brightness; ?bits=12" in dim.what
    deep(tmp_path, "f.png", 60000)
    assert "others are brighter" in look(open_images(f"folder:{tmp_path}"))[1].what
    assert look(open_images(f"folder:{tmp_path}?bits=16"))[0] == pages


def test_a_sample_says_that_it_is_one(tmp_path: Path) -> None:
    for k in range(70):
        Image.new("L", (2, 2), k).save(tmp_path / f"{k:02d}.bmp")
    deep(tmp_path, "00.png", 4000)
    (note,) = sampled_notes(open_images(f"folder:{tmp_path}"))
    assert "among 64 that were looked at" in note.what


def test_headers_tell_what_may_have_16_bits(tmp_path: Path) -> None:
    for name in ("a.png", "b.tif"):
        deep(tmp_path, name, 4000)
        content = (tmp_path / name).read_bytes()
        assert may_be_deep(content)
        assert decode(content, "x").dtype == torch.uint16
    assert not any(may_be_deep(encoded(kind, 1)) for kind in ("PNG", "TIFF", "JPEG", "GIF", "PPM"))
    assert not may_be_deep(b"II*\0")


def test_tallies_add_up() -> None:
    tally = Tally().plus(1, None, lambda: "a").plus(3, 100, lambda: "b").plus(1, 65535, lambda: "c")
    assert tally == Tally(several=1, unread=2, deep=2, dim=1, highest=100, examples=("b", "b"))


@pytest.mark.parametrize("look", [lambda images: survey(images).tally.notes(), sampled_notes], ids=["all", "sample"])
def test_deep_colours_of_which_8_bits_are_read_are_said(tmp_path: Path, look: Callable[..., list]) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6\n2 2\n65535\n" + struct.pack(">12H", *[4000] * 12))
    (tmp_path / "b.ppm").write_bytes(b"P6\n2 2\n65535\n" + bytes(24))
    (tmp_path / "c.ppm").write_bytes(encoded("PPM", 1))
    (tmp_path / "d.tif").write_bytes(encoded("TIFF", 1))
    images = open_images(f"folder:{tmp_path}")
    assert images.read(0).numpy().max() == 16
    (note,) = look(images)
    assert (note.number, note.level, note.example.endswith("a.ppm")) == (2, "warn", True)
    assert survey(images).tally.notes() == survey(images).tally.notes()
    assert not is_reduced(b"II*\0") and not is_reduced(b"P6")
